"""BERT and GPT-2 as plain torch modules, with the names that people give to the parts of their own models."""

import torch
from torch import nn
from torch.nn import functional

HIDDEN, HEADS, INNER, VOCABULARY, POSITIONS = 12, 3, 22, 37, 19


class SeparateAttention(nn.Module):
    """Query, key and value are layers of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(HIDDEN, HIDDEN) for _ in range(4))

    def forward(self, x: torch.Tensor, causal: bool) -> torch.Tensor:
        q, k, v = (each(x).unflatten(2, (HEADS, -1)).transpose(1, 2) for each in (self.q, self.k, self.v))
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        output: torch.Tensor = self.out(seen.transpose(1, 2).flatten(2))
        return output


class FusedAttention(nn.Module):
    """Query, key and value are one Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(HIDDEN, 3 * HIDDEN), nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: torch.Tensor, causal: bool) -> torch.Tensor:
        q, k, v = (each.unflatten(2, (HEADS, -1)).transpose(1, 2) for each in self.qkv(x).chunk(3, 2))
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        output: torch.Tensor = self.out(seen.transpose(1, 2).flatten(2))
        return output


class TorchAttention(nn.MultiheadAttention):
    """Query, key and value are one parameter, in_proj_weight."""

    def __init__(self) -> None:
        super().__init__(HIDDEN, HEADS, batch_first=True)

    def forward(self, x: torch.Tensor, causal: bool) -> torch.Tensor:  # type: ignore[override]
        hides = nn.Transformer.generate_square_subsequent_mask(x.shape[1]) if causal else None
        return super().forward(x, x, x, attn_mask=hides, need_weights=False)[0]


class BertBlock(nn.Module):
    def __init__(self, attention: type[nn.Module]) -> None:
        super().__init__()
        self.attention, self.attention_norm = attention(), nn.LayerNorm(HIDDEN, 1e-12)
        self.intermediate, self.output = nn.Linear(HIDDEN, INNER), nn.Linear(INNER, HIDDEN)
        self.output_norm = nn.LayerNorm(HIDDEN, 1e-12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.attention_norm(x + self.attention(x, False))
        inner = functional.gelu(self.intermediate(x), approximate="tanh")
        output: torch.Tensor = self.output_norm(x + self.output(inner))
        return output


class PlainBert(nn.Module):
    """BERT with its pooler, and with the head for the order of sentences if `classes`."""

    def __init__(self, attention: type[nn.Module], layers: int, classes: int = 0) -> None:
        super().__init__()
        self.word, self.position = nn.Embedding(VOCABULARY, HIDDEN), nn.Embedding(POSITIONS, HIDDEN)
        self.token_type, self.embedding_norm = nn.Embedding(2, HIDDEN), nn.LayerNorm(HIDDEN, 1e-12)
        self.blocks = nn.ModuleList(BertBlock(attention) for _ in range(layers))
        self.pooler = nn.Linear(HIDDEN, HIDDEN)
        if classes:
            self.classifier = nn.Linear(HIDDEN, classes)

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.word(ids) + self.position.weight[: ids.shape[1]] + self.token_type.weight[0]
        x = self.embedding_norm(x)
        for block in self.blocks:
            x = block(x)
        pooled = self.pooler(x[:, 0]).tanh()
        return x, self.classifier(pooled) if hasattr(self, "classifier") else pooled


class GptBlock(nn.Module):
    def __init__(self, attention: type[nn.Module]) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(HIDDEN), nn.LayerNorm(HIDDEN)
        self.attn = attention()
        self.fc, self.proj = nn.Linear(HIDDEN, INNER), nn.Linear(INNER, HIDDEN)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln1(x), True)
        output: torch.Tensor = x + self.proj(functional.gelu(self.fc(self.ln2(x)), approximate="tanh"))
        return output


class PlainGpt(nn.Module):
    def __init__(self, attention: type[nn.Module], layers: int) -> None:
        super().__init__()
        self.tok, self.pos = nn.Embedding(VOCABULARY, HIDDEN), nn.Embedding(POSITIONS, HIDDEN)
        self.h = nn.ModuleList(GptBlock(attention) for _ in range(layers))
        self.ln_f = nn.LayerNorm(HIDDEN)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tok(ids) + self.pos.weight[: ids.shape[1]]
        for block in self.h:
            x = block(x)
        output: torch.Tensor = self.ln_f(x)
        return output
