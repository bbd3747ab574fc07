"""Tokens that a model is given: in its tokenizer, in its matrices, and as rows that an adapter trains."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
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
        UserError: one is in the vocabulary and was not to be reused, or begins as a description that is empty, or the tokenizer
            cannot hold it.
    """
    from tokenizers import AddedToken

    vocabulary, texts = tokenizer.get_vocab(), [token.text for token in tokens]
    for token in tokens:
        if token.init == "description" and not described(tokenizer, token):
            raise UserError(
                f"method: the token {token.text!r} is to begin as its description, and that is empty.\n"
                "Say what it stands for, or choose another init."
            )
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


def described(tokenizer: Any, token: NewToken) -> list[int]:
    """Ids of the tokens of what a new token stands for; the tokenizer must not know the new token yet."""
    return tokenizer.encode(token.description, add_special_tokens=False)


@torch.no_grad()
def add_rows(model: Any, tokenizer: Any, tokens: Sequence[NewToken], seed: int, name: str, multiple: int | None = None) -> None:
    """Add tokens to a tokenizer, and to the model a row for each in its input and its output embedding.

    A matrix grows only where it has no spare rows, or where the number of its rows is not a multiple of ``multiple``. The row of
    a new token is the mean of the rows of all old tokens, or of those of the tokens of its description, plus ``noise`` times a
    standard normal vector (Korbak et al. 2023, "Pretraining Language Models with Human Preferences", program ``train.py``), or a
    normal vector of the width with which the architecture begins. It depends on the seed, the text and the old rows alone. A bias
    of the head becomes the mean of theirs, or 0. Rows of a token that is reused stay.

    Any other row that is made, which is no token's, is the mean of the old ones. Its logit then is the mean of those of the V old
    tokens, wherever the model stands, so that it has at most 1 / V of their probability (Jensen), and far less where the model is
    sure of anything. Zeros, or random numbers as in DELIA's program, have no such bound: all logits of a GPT-2 are below 0.

    Raises:
        UserError: see :func:`add_tokens`.
    """
    old = sorted(tokenizer.get_vocab().values())
    stands = [described(tokenizer, token) for token in tokens]
    ids = add_tokens(tokenizer, tokens, name)
    height, config = len(model.get_input_embeddings().weight), model.config.get_text_config()
    known = {i for i in old if i < height}
    for part in (model.config, config):
        part.tie_word_embeddings = tied(model)  # where the files say otherwise, a head of its own would be lost
    new = [(i, token, of) for i, token, of in zip(ids, tokens, stands, strict=True) if i not in known]
    if not new:
        return
    rows = -(-max(height, max(ids) + 1) // (multiple or 1)) * (multiple or 1)
    if rows > height:
        cuda = [model.device.index or 0] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            model.resize_token_embeddings(rows, mean_resizing=False)
    if model.device.type == "meta":
        return
    draws = [torch.Generator().manual_seed(derive(seed, "new token", token.text)) for _, token, _ in new]
    width = getattr(config, "initializer_range", getattr(config, "init_std", 0.02))
    for matrix in matrices(model):
        weight, bias = matrix.weight, getattr(matrix, "bias", None)
        mean, middle = _mean(matrix, sorted(known))
        weight[height:] = mean.to(weight)
        if bias is not None:
            bias[height:] = middle.to(bias)
        for (i, token, of), draw in zip(new, draws, strict=True):
            normal = torch.randn(len(mean), generator=draw)
            begin, shift = _mean(matrix, of) if token.init == "description" else (mean, middle)
            weight[i] = (width * normal if token.init == "random" else begin + token.noise * normal).to(weight)
            if bias is not None:
                bias[i] = 0.0 if token.init == "random" else shift.to(bias)


def _mean(matrix: Any, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Means of some rows of a matrix, [H], and of their biases, [], 0 where it has none.

    In fp32 or more, summed in fp64 on the CPU: the same wherever the weight lies.
    """
    wide, bias = torch.promote_types(matrix.weight.dtype, torch.float32), getattr(matrix, "bias", None)
    parts = [torch.tensor(rows[first : first + AT_ONCE], device=matrix.weight.device) for first in range(0, len(rows), AT_ONCE)]
    total = sum(matrix.weight[part].cpu().double().sum(0) for part in parts)
    shift = 0 if bias is None else sum(bias[part].cpu().double().sum() for part in parts)
    return torch.as_tensor(total / len(rows)).to(wide), torch.as_tensor(shift / len(rows)).to(wide)


def tied(model: Any) -> bool:
    """Whether input and output embedding are one matrix."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def matrices(model: Any) -> list[Any]:
    """The modules with a row per token: input and output embedding, or the one that is both."""
    head = model.get_output_embeddings()
    return [model.get_input_embeddings(), *([] if head is None or tied(model) else [head])]


def trainable_rows(model: Any, ids: Sequence[int]) -> dict[str, list[int]] | None:
    """What ``trainable_token_indices`` of peft must be for these tokens to be trained in every matrix; None for no tokens."""
    names = {id(module): name for name, module in model.named_modules()}
    return {names[id(matrix)]: list(ids) for matrix in matrices(model)} if ids else None


def embedding_name(model: Any) -> str:
    """The input embedding's name among the modules of a model."""
    matrix = model.get_input_embeddings()
    return next(name for name, module in model.named_modules() if module is matrix)


TIED = "this model's input embedding is its head, too (tied), and LoRA on such a matrix does not survive a merge"


def ways(model: Any, tokens: Sequence[NewToken]) -> tuple[list[str], bool]:
    """How tokens are trained, by ``NewToken.by``: which of them by their rows, and whether any by LoRA on the input embedding.

    Raises:
        UserError: LoRA is asked for and the model's matrices are tied, or for some tokens only.
    """
    trained = [token for token in tokens if token.trained]
    rows = [token.text for token in trained if token.by == "rows" or (token.by == "auto" and tied(model))]
    through = [token.text for token in trained if token.text not in rows]
    if through and tied(model):
        raise UserError(
            f"method: {', '.join(through)} cannot be trained by LoRA on the embedding: {TIED}.\n"
            "Train their rows: method.token_training=rows."
        )
    if through and rows:
        raise UserError(f"method: {', '.join(rows)} by rows and {', '.join(through)} by LoRA on the embedding: choose one for all.")
    return rows, bool(through)


def with_embedding(model: Any, targets: Any) -> Any:
    """LoRA targets and the input embedding, in the form that the targets have."""
    name = embedding_name(model)
    if isinstance(targets, list):
        return [*targets, name]
    if targets.lower() != "all-linear":
        return f"(?:{targets})|{re.escape(name)}"
    head = model.get_output_embeddings()
    linear = [
        name
        for name, m in model.named_modules()
        if m is not head and (isinstance(m, torch.nn.Linear) or type(m).__name__ == "Conv1D")
    ]
    return [*linear, name]


def refuse_tied(made: Any, where: str) -> None:
    """Raise UserError where LoRA is on a matrix that is input embedding and head at once."""
    from peft.tuners.lora import LoraLayer

    base = made.get_base_model()
    if any(isinstance(matrix, LoraLayer) for matrix in (base.get_input_embeddings(), base.get_output_embeddings())):
        hint = "Leave it out; the rows of new tokens can be trained themselves (method.token_training=rows)."
        raise UserError(f"{where}: {TIED}.\n{hint}")


def check_adapter(folder: Path, tokenizer: Any, tokens: Sequence[NewToken], model: Any, *, trainable: bool = False) -> None:
    """Refuse an adapter that has rows of other tokens than a model, or a LoRA on an embedding of other size.

    Args:
        folder: of the adapter; its own tokenizer, where it has one, tells which tokens its rows are of.
        tokenizer: of the base, with the tokens.
        tokens: that the base was given.
        model: the base, with rows for them.
        trainable: whether training goes on from it; then each token to be trained must be trained by it.

    Raises:
        UserError: it has rows for tokens that are not there, or not the same, or lacks some.
    """
    rows, its, height = rows_of(folder), _names_of(folder), embedding_rows(folder, model)
    vocabulary = tokenizer.get_vocab()
    ours = {i: text for text, i in vocabulary.items()}
    its_rows = sorted({*rows, *(its if height else ())})
    unknown = [its.get(i, f"id {i}") for i in its_rows if i not in ours]
    if unknown:
        raise UserError(
            f"model.adapter: {folder} has rows for {len(unknown)} token(s) that this method does not add ({', '.join(unknown)}).\n"
            "Give the method, with its tokens, with which the adapter was trained."
        )
    other = [i for i in its_rows if its.get(i, ours[i]) != ours[i]]
    if other:
        raise UserError(
            f"model.adapter: {folder} has a row for {its[other[0]]}, where this method adds {ours[other[0]]}.\n"
            "Give the tokens with which the adapter was trained, in their order."
        )
    here = len(model.get_input_embeddings().weight)
    if height not in (None, here):
        raise UserError(
            f"model.adapter: {folder} is of an embedding of {height} rows, and the model's has {here}.\n"
            "Give the tokens and the model.pad_vocabulary_to with which the adapter was trained."
        )
    lacking = [
        token for token in tokens if trainable and token.trained and not _trains(token, vocabulary[token.text] in rows, height)
    ]
    if lacking:
        what = "LoRA on the embedding" if lacking[0].by == "embedding" else "rows"
        raise UserError(
            f"model.adapter: {folder} has no {what} for {', '.join(token.text for token in lacking)}, which are to be trained.\n"
            "Fold it into its base (stages=[export] in its run), and give model=local model.path=RUN/merged in its place."
        )


def _trains(token: NewToken, by_row: bool, height: int | None) -> bool:
    """Whether an adapter with a row for a token, or LoRA on an embedding of a height, trains it as it is to be trained."""
    return by_row if token.by == "rows" else height is not None if token.by == "embedding" else by_row or height is not None


def embedding_rows(folder: Path, model: Any) -> int | None:
    """Rows of the input embedding that an adapter has LoRA on; None: it has none there, or is damaged, which is said later."""
    key = f"base_model.model.{embedding_name(model)}.lora_embedding_A"
    try:
        with safe_open(folder / "adapter_model.safetensors", "pt") as file:
            return file.get_slice(key).get_shape()[1] if key in file.keys() else None  # noqa: SIM118
    except (OSError, SafetensorError):
        return None


def keep_matrices(model: Any, file: Path) -> None:
    """Put input and output embedding into an adapter's file, where LoRA is on the input embedding.

    The rows with which new tokens begin are nowhere else. peft loads the matrices with the adapter; of its own accord it would
    write the first one alone. Of Llama 2 7B in 16 bits they are 525 MB, beside 70 MB of LoRA of rank 16 on attention.
    """
    from peft.tuners.lora import LoraLayer

    base = model.get_base_model()
    if not isinstance(base.get_input_embeddings(), LoraLayer):
        return
    kept = {id(p) for matrix in matrices(base) for p in (matrix.weight, getattr(matrix, "bias", None))}
    whole = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters() if id(p) in kept}
    temporary = file.with_suffix(".tmp")  # what is read may still lie in the file
    save_file(load_file(file) | whole, temporary, {"format": "pt"})
    temporary.replace(file)


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
