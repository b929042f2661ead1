"""Run by vLLM's own interpreter: goes on from prompt embeddings, model after model, in one process.

    python offline.py TOKENS DIR ...

DIR/decoder is a model, DIR/prompts/N.npy are embeddings [S, M]; DIR/ids.json becomes the tokens after each.
"""

import json
import sys
import traceback
from pathlib import Path

import numpy as np
import torch
from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory


def go_on(folder: Path, new: int) -> list[list[int]]:
    """Tokens after each prompt of a folder."""
    files = sorted((folder / "prompts").glob("*.npy"), key=lambda file: int(file.stem))
    llm = LLM(
        model=str(folder / "decoder"),
        enable_prompt_embeds=True,
        enforce_eager=True,
        dtype="float32",
        max_model_len=256,
        kv_cache_memory_bytes=64 << 20,
        max_num_seqs=8,
    )
    prompts = [{"prompt_embeds": torch.from_numpy(np.load(file))} for file in files]
    done = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=new, ignore_eos=True))
    return [list(one.outputs[0].token_ids) for one in done]


def main() -> None:
    """Each model in turn; what fails is told and does not stop the others."""
    for folder in map(Path, sys.argv[2:]):
        try:
            (folder / "ids.json").write_text(json.dumps(go_on(folder, int(sys.argv[1]))))
        except Exception:
            (folder / "error.txt").write_text(traceback.format_exc())
        cleanup_dist_env_and_memory()


if __name__ == "__main__":
    main()
