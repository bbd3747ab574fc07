"""Tokens that a model is given: in its tokenizer, in its matrices, and as rows that an adapter trains."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignlab.errors import UserError
from alignlab.protocols import NewToken
from alignlab.seeds import derive

AT_ONCE = 8192
"""rows of a matrix whose sum is taken at a time: bounds the memory of a mean"""


def add_tokens(tokenizer: Any, tokens: Sequence[NewToken], name: str) -> list[int]:
    """Make each text one special token, whatever stands beside it.

    Args:
        tokenizer: of Hugging Face; it is changed.
        tokens: with texts that differ.
        name: of the model, for messages.

    Returns:
        Their ids, in order.

    Raises:
        UserError: one is in the vocabulary and was not to be reused, or the tokenizer cannot hold it.
    """
    from tokenizers import AddedToken

    vocabulary, texts = tokenizer.get_vocab(), [token.text for token in tokens]
    for token in tokens:
        alone = tokenizer.encode(token.text, add_special_tokens=False)
        there = token.text in vocabulary
        if there and not token.reuse:
            raise UserError(
                f"method: the token {token.text!r} is in the vocabulary of {name} already (id {vocabulary[token.text]}).\n"
                "Choose another text, or take it as it is (method.existing_tokens=reuse)."
            )
        if not there and len(alone) == 1 and alone[0] != tokenizer.unk_token_id:
            piece = tokenizer.convert_ids_to_tokens(alone[0])
            raise UserError(f"method: {token.text!r} is the token {piece!r} of {name} already; choose a text that is none.")
    have = tokenizer.get_added_vocab()
    new = [AddedToken(text, normalized=False, special=True) for text in texts if text not in have]
    tokenizer.add_tokens(new, special_tokens=True)
    ids = tokenizer.convert_tokens_to_ids(texts)
    taken = set(vocabulary.values()) & {i for i, text in zip(ids, texts, strict=True) if text not in vocabulary}
    beside = [k for pair in product(range(len(ids)), repeat=2) for k in pair]  # each beside each
    read = tokenizer.encode("".join(texts[k] for k in beside), add_special_tokens=False)
    if taken or len({*ids}) < len(ids) or read != [ids[k] for k in beside]:
        raise UserError(f"method: the tokenizer of {name} cannot hold {', '.join(texts)} as one token each; choose other texts.")
    return ids


@torch.no_grad()
def add_rows(model: Any, tokenizer: Any, tokens: Sequence[NewToken], seed: int, name: str) -> None:
    """Add tokens to a tokenizer, and to the model a row for each in its input and its output embedding.

    A matrix grows only where it has no spare rows. The row of a new token is the mean of the rows of all old tokens plus
    ``noise`` times a standard normal vector (Korbak et al. 2023, "Pretraining Language Models with Human Preferences", program
    ``train.py``), or a normal vector of the width with which the architecture begins. It depends on the seed, the text and
    the old rows alone. A bias of the head becomes the mean of the old ones, or 0. Rows of a token that is reused stay.

    Raises:
        UserError: see :func:`add_tokens`.
    """
    old = sorted(tokenizer.get_vocab().values())
    ids = add_tokens(tokenizer, tokens, name)
    height, config = len(model.get_input_embeddings().weight), model.config.get_text_config()
    known = {i for i in old if i < height}
    for part in (model.config, config):
        part.tie_word_embeddings = _tied(model)  # where the files say otherwise, a head of its own would be lost
    if max(ids, default=0) >= height:
        cuda = [model.device.index or 0] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            torch.manual_seed(derive(seed, "new token"))  # for a row of an old token that had none
            model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    new = [(i, token) for i, token in zip(ids, tokens, strict=True) if i not in known]
    if not new:
        return
    draws = [torch.Generator().manual_seed(derive(seed, "new token", token.text)) for _, token in new]
    rows = torch.tensor(sorted(known))
    width = getattr(config, "initializer_range", getattr(config, "init_std", 0.02))
    for matrix in matrices(model):
        weight, bias = matrix.weight, getattr(matrix, "bias", None)
        mean = _mean(weight, rows)
        for (i, token), draw in zip(new, draws, strict=True):
            normal = torch.randn(len(mean), generator=draw)
            weight[i] = (mean + token.noise * normal if token.init == "mean" else width * normal).to(weight)
            if bias is not None:
                bias[i] = _mean(bias[:, None], rows)[0].to(bias) if token.init == "mean" else 0.0


def _mean(weight: Tensor, rows: Tensor) -> Tensor:
    """Mean of some rows, [H], in fp32 or more, on the CPU in fp64: the same wherever the weight lies."""
    total = sum(weight[some.to(weight.device)].cpu().double().sum(0) for some in rows.split(AT_ONCE))
    return (total / len(rows)).to(torch.promote_types(weight.dtype, torch.float32))  # type: ignore[union-attr]


def _tied(model: Any) -> bool:
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def matrices(model: Any) -> list[Any]:
    """The modules with a row per token: input and output embedding, or the one that is both."""
    head = model.get_output_embeddings()
    return [model.get_input_embeddings(), *([] if head is None or _tied(model) else [head])]


def trainable_rows(model: Any, ids: Sequence[int]) -> dict[str, list[int]] | None:
    """What ``trainable_token_indices`` of peft must be for these tokens to be trained in every matrix; None for no tokens."""
    names = {id(module): name for name, module in model.named_modules()}
    return {names[id(matrix)]: list(ids) for matrix in matrices(model)} if ids else None


def check_rows(folder: Path, tokenizer: Any, tokens: Sequence[NewToken], *, trainable: bool = False) -> None:
    """Refuse an adapter whose token rows are not of these tokens.

    Args:
        folder: of the adapter; its own tokenizer, where it has one, tells which tokens its rows are of.
        tokenizer: of the base, with the tokens.
        tokens: that the base was given.
        trainable: whether training goes on from it; then each token to be trained needs a row.

    Raises:
        UserError: it has rows for tokens that are not there, or not the same, or lacks some.
    """
    rows, its = rows_of(folder), _names_of(folder)
    vocabulary = tokenizer.get_vocab()
    ours = {i: text for text, i in vocabulary.items()}
    unknown = [its.get(i, f"id {i}") for i in rows if i not in ours]
    if unknown:
        raise UserError(
            f"model.adapter: {folder} has rows for {len(unknown)} token(s) that this method does not add ({', '.join(unknown)}).\n"
            "Give the method, with its tokens, with which the adapter was trained."
        )
    other = [i for i in rows if its.get(i, ours[i]) != ours[i]]
    if other:
        raise UserError(
            f"model.adapter: {folder} has a row for {its[other[0]]}, where this method adds {ours[other[0]]}.\n"
            "Give the tokens with which the adapter was trained, in their order."
        )
    lacking = [token.text for token in tokens if token.trained and vocabulary[token.text] not in rows]
    if trainable and lacking:
        raise UserError(
            f"model.adapter: {folder} has no rows for {', '.join(lacking)}, which are to be trained.\n"
            "Fold it into its base (stages=[export] in its run), and give model=local model.path=RUN/merged in its place."
        )


def rows_of(folder: Path) -> list[int]:
    """Ids of the tokens that an adapter has rows for."""
    found = _read(folder / "adapter_config.json").get("trainable_token_indices")
    return sorted({i for ids in found.values() for i in ids} if isinstance(found, dict) else found or [])


def _names_of(folder: Path) -> dict[int, str]:
    """Texts of the added tokens in a folder's tokenizer, by id."""
    return {token["id"]: token["content"] for token in _read(folder / "tokenizer.json").get("added_tokens", [])}


def _read(file: Path) -> dict[str, Any]:
    """The content of a JSON file; empty where there is none, or where it is damaged, which is said when it is needed."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
