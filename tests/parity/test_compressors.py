"""TokenPacker and MQT in sizes that no golden file has, against their formulas in PyTorch's own parts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.golden_check import TOLERANCE, check


class TokenPacker(nn.Module):
    """Named as the original's state dict is."""

    def __init__(self, width: int, heads: int, scale: int, output: int):
        super().__init__()
        self.scale = scale
        self.q_proj_1 = nn.Linear(width, width, bias=False)
        self.k_proj_1 = nn.Sequential(nn.Linear(4 * width, width), nn.GELU(), nn.Linear(width, width))
        self.v_proj_1 = nn.Sequential(nn.Linear(4 * width, width), nn.GELU(), nn.Linear(width, width))
        self.ln_q_1, self.ln_k_1, self.ln_v_1 = (nn.LayerNorm(width, eps=1e-6) for _ in range(3))
        self.clip_attn = nn.MultiheadAttention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, output), nn.GELU(), nn.Linear(output, output))

    def squares(self, x: torch.Tensor) -> torch.Tensor:
        """[B, g^2, D] -> [s^2, B h^2, D]"""
        (b, n, d), s = x.shape, self.scale
        h = round(n**0.5) // s
        return x.reshape(b, h, s, h, s, d).permute(2, 4, 0, 1, 3, 5).reshape(s * s, -1, d)

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        single, multi = inputs["single_level"], inputs["multi_level"]
        b, n, d = single.shape
        g = round(n**0.5)
        small = F.interpolate(
            single.reshape(b, g, g, d).permute(0, 3, 1, 2), (g // self.scale,) * 2, mode="bilinear"
        )
        q = self.ln_q_1(self.q_proj_1(small.permute(0, 2, 3, 1).reshape(b, -1, d)))
        k, v = self.ln_k_1(self.k_proj_1(multi)), self.ln_v_1(self.v_proj_1(multi))
        out = self.clip_attn(q.reshape(1, -1, d), self.squares(k), self.squares(v))[0]
        return self.mlp(out.reshape(b, -1, d))


class MQT(nn.Module):
    """Named as the original's state dict is."""

    def __init__(self, width: int, heads: int, side: int, output: int, tokens: int):
        super().__init__()
        self.tokens, self.side = tokens, side
        frequency = 1.0 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width / 4))
        angle = torch.arange(side, dtype=torch.float64)[:, None] * frequency
        one = torch.cat([angle.sin(), angle.cos()], 1)
        both = torch.cat([one.repeat(side, 1), one.repeat_interleave(side, 0)], 1)
        self.pos_embed = nn.Parameter(both.float(), requires_grad=False)
        self.query = nn.Parameter(torch.empty(side**2, width))
        self.proj = nn.Parameter(torch.empty(width, output))
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_q, self.ln_k, self.ln_v = (nn.LayerNorm(width, eps=1e-6) for _ in range(3))

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        x = inputs["single_level"]
        b, n, d = x.shape
        square = self.pos_embed.reshape(1, self.side, self.side, d).permute(0, 3, 1, 2)
        positions = F.interpolate(square, (round(n**0.5),) * 2, mode="bicubic")
        k = self.ln_k(positions.permute(0, 2, 3, 1).reshape(n, 1, d)).expand(n, b, d)
        q = self.ln_q(self.query + self.pos_embed)[: self.tokens, None].expand(-1, b, d)
        return self.attn(q, k, self.ln_v(x.transpose(0, 1)))[0].transpose(0, 1) @ self.proj


def write(path: Path, module: nn.Module, inputs: dict[str, Any], meta: list[int]) -> None:
    """A file as `tests.golden_check` reads them, of random parameters."""
    torch.manual_seed(len(str(meta)))
    for name, p in module.named_parameters():
        if p.requires_grad:
            shift = 1.0 if name.startswith("ln_") and name.endswith("weight") else 0.0
            nn.init.normal_(p.data, shift, 0.2)
    inputs = {k: torch.randn(shape, requires_grad=True) for k, shape in inputs.items()}
    out = module(inputs)
    cotangent = torch.randn(out.shape)
    (out * cotangent).sum().backward()
    arrays = {"out": out, "cotangent": cotangent}
    for name, p in module.named_parameters():
        arrays[f"param/{name}"] = p
        if p.grad is not None:
            arrays[f"grad/{name}"] = p.grad
    for name, x in inputs.items():
        arrays |= {f"in/{name}": x, f"grad_in/{name}": x.grad}
    found: dict[str, Any] = {k: v.detach().numpy() for k, v in arrays.items()}
    np.savez(path, meta=np.array(meta), **found)


@pytest.mark.parametrize(
    "width, heads, grid, scale, output",
    [(16, 2, 6, 3, 20), (24, 3, 8, 2, 12), (16, 16, 8, 8, 16), (32, 1, 5, 5, 8), (8, 4, 3, 1, 8)],
)
def test_tokenpacker(tmp_path, width, heads, grid, scale, output):
    path = tmp_path / "tokenpacker.npz"
    inputs = {"single_level": (2, grid**2, width), "multi_level": (2, grid**2, 4 * width)}
    write(path, TokenPacker(width, heads, scale, output), inputs, [width, heads, grid, scale, output])
    errors = check(path)
    assert len(errors) == 26 and max(errors.values()) < TOLERANCE, errors


@pytest.mark.parametrize(
    "width, heads, grid, side, output, tokens",
    [
        (32, 8, 7, 3, 20, 9),
        (16, 2, 4, 6, 24, 20),
        (24, 3, 5, 5, 12, 3),
        (16, 4, 8, 16, 8, 256),
        (128, 8, 24, 16, 32, 16),
        (8, 1, 3, 1, 8, 1),
    ],
)
def test_mqt(tmp_path, width, heads, grid, side, output, tokens):
    path = tmp_path / "mqt.npz"
    write(
        path,
        MQT(width, heads, side, output, tokens),
        {"single_level": (2, grid**2, width)},
        [width, heads, grid, side, output, tokens],
    )
    errors = check(path)
    assert len(errors) == 14 and max(errors.values()) < TOLERANCE, errors
