"""What two tokenizers of one family have in common: divergences compare distributions over the same token ids."""

from __future__ import annotations

import re

from transformers import PreTrainedTokenizerBase

from dudi.errors import DudiError

_RESERVED = re.compile("reserved|unused|placeholder|dummy", re.IGNORECASE)
"""In the names of added tokens that nothing uses yet; a later member of the family gives them a meaning and a name."""


def check_same_tokenizer(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, whose: str = "teacher"
) -> int:
    """The number of token ids that both have in common, from 0 on.

    What comes after them may differ in added tokens only (another member of the family, with tools); those are left
    out. An added token that one of them only reserves is what the other calls it. whose: the other one's, in errors.
    Raises `DudiError`, which names a difference, where ordinary tokens differ.
    """
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    mine, others = ({id: token for token, id in vocab.items()} for vocab in (ours, theirs))
    different = [id for id in mine.keys() | others.keys() if mine.get(id) != others.get(id)]
    added = student.added_tokens_decoder.keys() & teacher.added_tokens_decoder.keys()
    different = [id for id in different if not (id in added and _RESERVED.search(f"{mine[id]} {others[id]}"))]
    if not different:
        return max(ours.values()) + 1
    shared = min(different)
    ordinary = [
        token
        for tokenizer, vocab in ((student, mine), (teacher, others))
        for id, token in vocab.items()
        if id >= shared and id not in tokenizer.added_tokens_decoder
    ]
    if not ordinary:
        return shared
    token = min((t for t in ordinary if ours.get(t) != theirs.get(t)), key=lambda t: (len(t), t), default=ordinary[0])
    raise DudiError(
        f"student and {whose} have different tokenizers ({len(ours)} and {len(theirs)} tokens; {token!r} is"
        f" {ours.get(token)} and {theirs.get(token)}): distillation compares distributions over the same tokens; use a"
        f" {whose} of the student's family"
    )
