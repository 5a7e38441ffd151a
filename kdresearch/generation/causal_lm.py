"""Texts that a causal language model writes on from a prompt."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Formatter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdresearch.errors import UserError, choices
from kdresearch.generation.generator import Preparation, check_least
from kdresearch.generation.pretrained import Pretrained, load
from kdresearch.structures import UNLABELLED

BALANCES = ("uniform", "train")
FIELDS = ("label", "text")


@dataclass(kw_only=True)
class CausalLm(Pretrained):
    """Any Hugging Face causal language model, with nucleus sampling (Holtzman et al. 2020).

    In a prompt, ``{label}`` stands for a class, drawn for each sample, and ``{text}`` for the first words of a row,
    of that class where both are there. The sample is what follows the prompt.

    Args:
        prompt: a template; ``{label}`` is a class's name, ``{text}`` the opening of a row.
        names: what a class is called in the prompt, where that is not its name.
        balance: classes are drawn ``uniform``-ly, or as often as among the labelled rows (``train``).
        words: of a row that ``{text}`` stands for.
        keep_prompt: the sample begins with its prompt.
        one_line: the sample ends at the first line break.
        temperature: 0 takes the likeliest token.
        top_p: probability of the nucleus that tokens are drawn from; 1 is all of them.

    Raises:
        UserError: settings that make no sense.
    """

    NAME = "causal_lm"

    prompt: str = "A {label} text:"
    names: dict[str, str] = field(default_factory=dict)
    balance: str = "uniform"
    words: int = 8
    keep_prompt: bool = False
    one_line: bool = True
    temperature: float = 1.0
    top_p: float = 0.95
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sampling(self.temperature, self.top_p, self.balance)
        try:
            self.placeholders = {name for _, name, _, _ in Formatter().parse(self.prompt) if name is not None}
        except ValueError as error:
            raise UserError(f"generator.prompt: {self.prompt!r} is no template ({error})") from error
        for name in sorted(self.placeholders - set(FIELDS)):
            raise UserError(f"generator.prompt: {choices(name, FIELDS)}")
        if "label" not in self.placeholders and (self.names or self.balance != "uniform"):
            ignored = "names" if self.names else "balance"
            raise UserError(f"generator.{ignored} is about classes, and generator.prompt names no {{label}}")
        check_least(self, words=1, max_new_tokens=1)

    def prepare(self, preparation: Preparation) -> None:
        """Load the model and keep what the prompts are made of; UserError where they cannot be made."""
        for name in sorted(set(self.names) - set(preparation.classes)):
            raise UserError(f"generator.names: {choices(name, preparation.classes)}")
        self.class_names = [self.names.get(name, name) for name in preparation.classes]
        self.rows = [" ".join(text.split()[: self.words]) for text in preparation.texts]
        self.labels = np.asarray(preparation.labels)
        if "text" in self.placeholders and not any(self.rows):
            raise UserError("generator.prompt: there is no text to go on from")
        if "label" in self.placeholders and (self.balance == "train" or "text" in self.placeholders):
            random = np.random.default_rng(0)
            draw_labels(1, self.labels, len(self.class_names), self.balance, random)  # refuses here
        preparation.say(f"loading the language model {self.path}")
        self.model, self.tokenizer = load(self.path, "AutoModelForCausalLM", self.dtype, preparation.device)
        _check_causal(self.model, self.path)
        self.positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if self.positions is not None and self.max_new_tokens >= self.positions:
            raise UserError(
                f"generator.max_new_tokens: {self.path} has room for {self.positions} tokens, "
                f"the prompt among them: {self.max_new_tokens} is too many"
            )
        self.stop = self._stop_ids()

    def _stop_ids(self) -> frozenset[int]:
        configured = self.model.generation_config.eos_token_id
        stop_ids = set(configured) if isinstance(configured, list) else {configured}
        stop_ids = {end for end in stop_ids | {self.tokenizer.eos_token_id} if end is not None}
        if self.one_line:
            pieces = self.tokenizer.batch_decode([[number] for number in range(len(self.tokenizer))])
            stop_ids |= {number for number, piece in enumerate(pieces) if "\n" in piece}
        return frozenset(stop_ids)

    def generate(self, number: int, seed: int, start: int) -> list[str]:
        """Samples of so many prompts."""
        prompts = [self._ids(prompt) for prompt in self.prompts(number, np.random.default_rng(seed))]
        written = sample(
            self.model,
            prompts,
            seed=seed,
            stop=self.stop,
            temperature=self.temperature,
            top_p=self.top_p,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
        )
        return [self._text(prompt, new) for prompt, new in zip(prompts, written, strict=True)]

    def prompts(self, number: int, random: np.random.Generator) -> list[str]:
        """The template filled in so many times."""
        sampled_labels = np.full(number, UNLABELLED)
        if "label" in self.placeholders:
            observed = "text" in self.placeholders or self.balance == "train"
            among = self.labels if observed else np.arange(len(self.class_names))
            sampled_labels = draw_labels(number, among, len(self.class_names), self.balance, random)
        filled = []
        for label in sampled_labels:
            values = {"label": self.class_names[label] if label != UNLABELLED else ""}
            if "text" in self.placeholders:
                of_label = self.labels == label if label != UNLABELLED else np.ones(len(self.rows), bool)
                values["text"] = self.rows[random.choice(np.flatnonzero(of_label))]
            filled.append(self.prompt.format(**values))
        return filled

    def _ids(self, prompt: str) -> list[int]:
        ids: list[int] = self.tokenizer(prompt)["input_ids"]
        while ids and ids[-1] == self.tokenizer.eos_token_id:  # of a tokenizer that ends every text
            ids.pop()
        if not ids:
            start = self.tokenizer.bos_token_id
            start = self.tokenizer.eos_token_id if start is None else start
            if start is None:
                raise UserError(f"generator.prompt: {self.path} has no token to begin with: give a prompt")
            ids = [start]
        return ids if self.positions is None else ids[-(self.positions - self.max_new_tokens) :]

    def _text(self, prompt: list[int], new: list[int]) -> str:
        # Decoded in one piece: a tokenizer that marks the beginning of words drops the space before the first.
        settings = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        before, full = (self.tokenizer.decode(ids, **settings) for ids in (prompt, prompt + new))
        text = full[len(before) :]
        text = text.split("\n")[0] if self.one_line else text
        return str(before + text if self.keep_prompt else text).strip()


@torch.inference_mode()
def sample(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    seed: int,
    stop: Collection[int],
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    batch_size: int,
    cache: bool = True,
) -> list[list[int]]:
    """The tokens that a causal language model adds to each prompt, up to and with the first that is in ``stop``.

    The first token of a sample is never one of ``stop``.

    Args:
        prompts: ids, at least one in each; shorter ones are padded on the left within a batch.
        seed: the same draws for the same seed and ``batch_size``.
        cache: keep keys and values between tokens; the same tokens without, later.
    """
    from transformers import GenerationConfig

    configuration: Any = GenerationConfig  # untyped there
    model.generation_config = configuration()  # what came with the model would fill in what is not set here
    settings = configuration(
        max_new_tokens=max_new_tokens,
        min_new_tokens=1,
        eos_token_id=sorted(stop) or None,
        pad_token_id=0,  # masked, or after the end
        use_cache=cache,
    )
    device = next(model.parameters()).device
    drawing = []
    if temperature > 0 and top_p > 0:
        drawing = [Nucleus(temperature, top_p, torch.Generator(device).manual_seed(seed))]
    written = []
    for first in range(0, len(prompts), batch_size):
        batch = prompts[first : first + batch_size]
        width = max(map(len, batch))
        ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in batch], device=device)
        empty = torch.tensor([[width - len(prompt)] for prompt in batch], device=device)
        mask = (torch.arange(width, device=device) >= empty).long()
        answer = model.generate(
            input_ids=ids, attention_mask=mask, generation_config=settings, logits_processor=drawing
        )
        for row in answer[:, width:].tolist():
            end = next((place for place, token in enumerate(row) if token in stop), len(row))
            written.append(row[: end + 1])
    return written


class Nucleus:
    """Draws the next tokens: the one of each row keeps a score above -inf, so that greedy decoding takes it.

    The nucleus is the fewest likeliest tokens that hold ``top_p`` of the probability (Holtzman et al. 2020, §3.1).
    A token is in it where the likelier ones hold less than that; so a draw from the whole vocabulary that is not is
    drawn again, which follows the nucleus's shares and sorts nothing: to sort a vocabulary at each token is most of
    the time that a small model takes. Rows without a token of the nucleus after ROUNDS draws draw from sorted ones.
    """

    ROUNDS = 8

    def __init__(self, temperature: float, top_p: float, draws: torch.Generator) -> None:
        self.temperature, self.top_p, self.draws = temperature, top_p, draws

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [B, V] of which one in each row is 0 and the others are -inf."""
        shares = torch.softmax(scores.float() / self.temperature, dim=-1)
        tokens = self._draw(shares)
        if self.top_p < 1:
            rows = (~self._inside(shares, tokens)).nonzero()[:, 0]
            for _ in range(self.ROUNDS):
                if not len(rows):
                    break
                tokens[rows] = self._draw(shares[rows])
                rows = rows[~self._inside(shares[rows], tokens[rows])]
            if len(rows):
                likeliest, names = shares[rows].sort(dim=1, descending=True)
                before = likeliest.cumsum(dim=1) - likeliest
                tokens[rows] = names.gather(1, self._draw(likeliest.masked_fill(before >= self.top_p, 0)))
        return torch.full_like(scores, -torch.inf).scatter(1, tokens, 0.0)

    def _inside(self, shares: Tensor, tokens: Tensor) -> Tensor:
        """[B] bool: whether the tokens that are likelier than ``tokens`` [B, 1] hold less than the nucleus."""
        return (shares * (shares > shares.gather(1, tokens))).sum(dim=1) < self.top_p

    def _draw(self, shares: Tensor) -> Tensor:
        """[B, 1] tokens, as often as their shares [B, V] of each row's sum."""
        sums = shares.cumsum(dim=1)
        point = torch.rand(len(shares), 1, generator=self.draws, device=shares.device) * sums[:, -1:]
        return torch.searchsorted(sums, point, right=True).clamp(max=shares.shape[1] - 1)


def draw_labels(number: int, labels: np.ndarray, classes: int, balance: str, random: np.random.Generator) -> np.ndarray:
    """[number] classes of those that ``labels`` [N] holds: all alike (``uniform``), or as often as there (``train``).

    Raises:
        UserError: no row has a label.
    """
    counts = np.bincount(labels[labels != UNLABELLED], minlength=classes)
    if not counts.sum():
        raise UserError("generator: no row has a label to draw a class from")
    weights = counts if balance == "train" else counts > 0
    return random.choice(classes, size=number, p=weights / weights.sum())


def check_sampling(temperature: float, top_p: float, balance: str) -> None:
    """UserError for settings of the sampling that are out of their range."""
    if temperature < 0:
        raise UserError(f"generator.temperature must be at least 0, not {temperature}")
    if not 0 <= top_p <= 1:
        raise UserError(f"generator.top_p must be between 0 and 1, not {top_p}")
    if balance not in BALANCES:
        raise UserError(f"generator.balance: {choices(balance, BALANCES)}")


@torch.inference_mode()
def _check_causal(model: Any, path: str | Path) -> None:
    """An encoder with a trained head loads as a causal model too, but sees the tokens that it is to guess."""
    ids = torch.tensor([[0, 0, 0], [0, 0, 1]], device=next(model.parameters()).device)
    logits = model(input_ids=ids).logits[:, 0].float()
    noise = 4 * torch.finfo(next(model.parameters()).dtype).eps * logits.abs().max()
    if (logits[0] - logits[1]).abs().max() > noise:
        raise UserError(f"generator.path: {path} is no causal language model: it reads what comes after a token")
