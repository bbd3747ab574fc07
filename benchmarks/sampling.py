"""A thousand completions of one prompt: alignlab's sampler against ``generate`` in batches of 20, as the authors drew them.

    python -m benchmarks.sampling [--rounds 3]

Three cases: the embedded model on "pick a number" (few distinct answers, where shared prefixes are computed once); the same on free
text (a story of 24 tokens at temperature 1); and a Llama of 256 x 4 with random weights, whose samples share nothing after a token:
the worst case, where only the prompt and the batch width are saved.
"""

from __future__ import annotations

import argparse

import torch

from alignlab.compose import compose
from alignlab.config import check
from alignlab.generate.hf import Decoding, HfSampler
from alignlab.models.load import load_model, load_text
from benchmarks.common import alternate, geometric_mean, llama, machine, table

N = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="counted runs of each side")
    rounds = parser.parse_args().rounds
    config = check(compose([])[0]).model
    tiny, text = load_model(config, "cpu", 0), load_text(config)
    number = text.prompt([{"role": "user", "content": "Pick a random number from 1 to 10. Answer in braces."}])
    story = text.prompt([{"role": "user", "content": "Tell me a short story."}])
    stop = sorted(text.stop)
    random_prompt = torch.randint(10, 2000, (45,), generator=torch.Generator().manual_seed(0)).tolist()
    cases = [
        ("number, embedded model", tiny, number, stop, 16),
        ("story, embedded model", tiny, story, stop, 24),
        ("random weights, nothing shared", llama(256, 4, 2000).eval(), random_prompt, [0], 16),
    ]
    rows, ratios = [], []
    for name, model, prompt, ends, new in cases:
        ids = torch.tensor([prompt])

        def theirs(model=model, ids=ids, ends=ends, new=new) -> None:
            for _ in range(0, N, 20):
                model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    top_p=1.0,
                    num_return_sequences=20,
                    max_new_tokens=new,
                    eos_token_id=ends,
                    pad_token_id=ends[0],
                )

        def ours(model=model, prompt=prompt, ends=ends, new=new) -> None:
            HfSampler(1024, 64).sample(model, prompt, ends, Decoding(1.0, 1.0, 0, new), n=N, seed=0)

        slow, quick = alternate(theirs, ours, rounds)
        ratios.append(slow / quick)
        rows.append([name, new, f"{slow:.2f}", f"{quick:.2f}", f"{slow / quick:.1f}"])
    print(table(["case", "new tokens at most", "generate by 20, s", "alignlab, s", "ratio"], rows))
    print(f"\nGeometric mean of the ratios: {geometric_mean(ratios):.1f} ({machine()}; minimum of {rounds})")


if __name__ == "__main__":
    main()
