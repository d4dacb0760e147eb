"""The peer: a GPT in PyTorch eager, written as a PyTorch user would, equal in shape to what lm_jax trains beside it."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    """Multi-head causal attention; with `modern` rotary positions and QK-norm."""

    def __init__(self, width: int, heads: int, modern: bool, bias: bool):
        super().__init__()
        self.heads, self.modern = heads, modern
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.proj = nn.Linear(width, width, bias=bias)
        if modern:
            self.q_norm, self.k_norm = nn.RMSNorm(width // heads), nn.RMSNorm(width // heads)

    def forward(self, x, rope):
        B, T, C = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        if self.modern:
            q, k = rotate(self.q_norm(q), rope), rotate(self.k_norm(k), rope)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(y.transpose(1, 2).reshape(B, T, C))


def rotate(x, rope):
    """Half-split rotary embedding."""
    cos, sin = rope
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class MLP(nn.Module):
    """GELU (tanh) of width 4 C, or SwiGLU of `hidden`."""

    def __init__(self, width: int, hidden: int, modern: bool, bias: bool):
        super().__init__()
        self.modern = modern
        self.up = nn.Linear(width, hidden * (2 if modern else 1), bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)

    def forward(self, x):
        h = self.up(x)
        if self.modern:
            gate, h = h.chunk(2, dim=-1)
            return self.down(F.silu(gate) * h)
        return self.down(F.gelu(h, approximate="tanh"))


class Block(nn.Module):
    """Pre-norm block."""

    def __init__(self, width: int, heads: int, hidden: int, modern: bool):
        super().__init__()
        norm = nn.RMSNorm if modern else nn.LayerNorm
        self.norm1, self.norm2 = norm(width), norm(width)
        self.attention = Attention(width, heads, modern, bias=not modern)
        self.mlp = MLP(width, hidden, modern, bias=not modern)

    def forward(self, x, rope):
        x = x + self.attention(self.norm1(x), rope)
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """A decoder with tied embeddings: GPT-2's parts, or (`modern`) rotary, RMSNorm, QK-norm and SwiGLU."""

    def __init__(self, vocab: int, width: int, heads: int, layers: int, length: int, hidden: int, modern: bool):
        super().__init__()
        self.table = nn.Embedding(vocab, width)
        self.positions = None if modern else nn.Embedding(length, width)
        self.blocks = nn.ModuleList([Block(width, heads, hidden, modern) for _ in range(layers)])
        self.norm = nn.RMSNorm(width) if modern else nn.LayerNorm(width)
        angle = torch.outer(torch.arange(length), 10_000 ** (-torch.arange(0, width // heads, 2) / (width // heads)))
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())
        for name, p in self.named_parameters():
            if p.dim() == 2:
                residual = name.endswith(("proj.weight", "down.weight"))
                nn.init.normal_(p, std=0.02 / (math.sqrt(2 * layers) if residual else 1))

    def forward(self, tokens, targets):
        x = self.table(tokens)
        if self.positions is not None:
            x = x + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x, (self.cos, self.sin))
        logits = self.norm(x) @ self.table.weight.T
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def make_step(shape: dict, modern: bool):
    """A function (tokens, targets) -> loss that trains one step with fused AdamW and clipping at norm 1."""
    torch.manual_seed(0)
    model = GPT(**shape, modern=modern)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1, fused=True)

    def step(tokens, targets) -> float:
        loss = model(tokens, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step
