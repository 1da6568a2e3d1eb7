"""An engine that asks no model: it answers with the end of the prompt."""

from collections.abc import Sequence

from transformers import PreTrainedModel

from dudi.rollouts import Request, Rollout, Sampling


class Echo:
    """The last tokens of the prompt, as many as the limit allows but one, and the stop token."""

    def __init__(self, sampling: Sampling) -> None:
        self.stop = sampling.stop_ids[0]

    def __call__(self, model: PreTrainedModel, requests: Sequence[Request]) -> list[Rollout]:
        """One for each, in order."""
        return [Rollout((*r.prompt[len(r.prompt) - r.limit + 1 :], self.stop), True) for r in requests]
