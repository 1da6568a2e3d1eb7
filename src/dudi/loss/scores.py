"""Block and Scores: what the models read of each view, and what they say of it.

Shapes: B sequences of one view in a micro-batch, L their padded length, N response tokens in all, H hidden size. The
sequences are padded on the right, where causal attention cannot see (or a mask lets nothing else look); only the N
positions that predict a response token reach the head. Student and teacher read different prompts, so only the response
tokens line up: both have the same N, labels and order by construction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from dudi.loss import chunked
from dudi.loss.chunked import Head, Positions
from dudi.signals import View


@dataclass(frozen=True)
class Reading:
    """What one model reads of one view. input_ids [B, L]; predicts [N]: flat index into B*L of the position whose
    hidden state predicts each response token; prompts, responses: the B sequences in their two parts.

    positions [B, L] and mask [B, 1, L, L] (what sees what) where a sequence holds several responses
    (`dudi.loss.prefix`): readings of the same `input_ids` are read once.
    """

    input_ids: Tensor
    predicts: Tensor
    prompts: tuple[tuple[int, ...], ...] = ()
    responses: tuple[tuple[int, ...], ...] = ()
    positions: Tensor | None = None
    mask: Tensor | None = None


@dataclass(frozen=True)
class Block:
    """One view of a micro-batch.

    labels [N]: the response tokens; row [N]: the micro-batch row of each; position [N]: its place in the response;
    weight [N]: 1, or 0 for rows that only fill up a batch; rows: number of rows in the micro-batch.
    """

    view: View
    student: Reading
    teacher: Reading | None
    labels: Tensor
    row: Tensor
    position: Tensor
    weight: Tensor
    rows: int

    def per_row(self, values: Tensor) -> Tensor:
        """Sum of values [N] by row -> [rows]."""
        return values.new_zeros(self.rows).index_add_(0, self.row, values)

    def present(self) -> Tensor:
        """[rows] 1 where the row has this view and counts."""
        found = self.weight.new_zeros(self.rows)
        return found.index_fill_(0, self.row[self.weight > 0], 1.0)


@dataclass(frozen=True)
class Scores:
    """Hidden states of each model at the response positions of each view; the reference's log R(.|x) by row.

    student: by view, [N, H]; teacher: by view, [N, Ht]; reference: by view, [rows].
    """

    blocks: Mapping[View, Block]
    student: Mapping[View, Tensor]
    head: Head
    teacher: Mapping[View, Tensor] = field(default_factory=dict)
    teacher_head: Head | None = None
    reference: Mapping[View, Tensor] = field(default_factory=dict)


def hidden_states(backbone: nn.Module, reading: Reading) -> Tensor:
    """[N, H]: the backbone's last hidden states at the predicting positions. Of one response a sequence no attention
    mask: padding is on the right, so that no real token sees it, and attention keeps its causal fast path."""
    return all_states(backbone, reading).index_select(0, reading.predicts)


def all_states(backbone: nn.Module, reading: Reading) -> Tensor:
    """[B L, H]: the backbone's last hidden states everywhere."""
    more = {} if reading.mask is None else {"attention_mask": reading.mask, "position_ids": reading.positions}
    hidden: Tensor = backbone(input_ids=reading.input_ids, use_cache=False, **more).last_hidden_state
    return hidden.flatten(0, 1)


def response_log_probs(
    hidden: Mapping[View, Tensor], head: Head, blocks: Mapping[View, Block], chunk: int
) -> dict[View, Tensor]:
    """log p(response | prompt) by view, each [rows], in float64; no gradient. hidden: by view, [N, H]."""
    positions = [Positions(blocks[view].labels, row=blocks[view].row) for view in hidden]
    rows = next((blocks[view].rows for view in hidden), 0)
    found = chunked.response_log_probs(list(hidden.values()), head, positions, rows, chunk)
    return dict(zip(hidden, found, strict=True))
