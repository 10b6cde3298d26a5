"""The networks of the benchmark. Each is written once, for both libraries: `lib` says whose layers
it is made of (`libraries.py`), and both know the same names. So what is timed is the same network,
layer by layer, and weights go from one to the other by name.

Only the LSTM differs: PyTorch has it as one layer.
"""

from __future__ import annotations

from typing import Any

Library = Any  # libraries.Ours, libraries.Mixed or libraries.Theirs


def mlp(lib: Library, hidden: int = 512) -> Any:
    """784-512-512-10."""
    nn = lib.nn
    return nn.Sequential(
        nn.Linear(784, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 10),
    )


def mnist_cnn(lib: Library) -> Any:
    """Four convolutions, two norms, two pools: 28x28 to 10 classes."""
    nn = lib.nn
    return nn.Sequential(
        nn.Conv2d(1, 32, 5),
        nn.ReLU(),
        nn.Conv2d(32, 32, 5),
        nn.ReLU(),
        nn.BatchNorm2d(32),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3),
        nn.ReLU(),
        nn.BatchNorm2d(64),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(576, 10),
    )


# --- ResNet: He et al. 2015, 1512.03385 -----------------------------------------------------------


def resnet18(lib: Library, width: int = 64, blocks: int = 2) -> Any:
    """For 32x32 images: a 3x3 stem without pooling, four stages of two basic blocks."""
    nn = lib.nn

    class Block(nn.Module):  # type: ignore[name-defined]
        def __init__(self, inner: int, outer: int, stride: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(outer)
            self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(outer)
            self.short = nn.Identity()
            if inner != outer:
                conv = nn.Conv2d(inner, outer, 1, stride, bias=False)
                self.short = nn.Sequential(conv, nn.BatchNorm2d(outer))

        def forward(self, x: Any) -> Any:
            h = self.bn1(self.conv1(x)).relu()
            return (self.bn2(self.conv2(h)) + self.short(x)).relu()

    class ResNet(nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, width, 3, 1, 1, bias=False)
            self.bn = nn.BatchNorm2d(width)
            stages: list[Any] = []
            inner = width
            for stage in range(4):
                for block in range(blocks):
                    outer = width * 2**stage
                    stages.append(Block(inner, outer, 2 if stage and block == 0 else 1))
                    inner = outer
            self.stages = nn.Sequential(*stages)
            self.fc = nn.Linear(inner, 10)

        def forward(self, x: Any) -> Any:
            return self.fc(self.stages(self.bn(self.conv(x)).relu()).mean((2, 3)))

    return ResNet()


def resnet50(lib: Library, blocks: tuple[int, ...] = (3, 4, 6, 3)) -> Any:
    """For 224x224 images: bottleneck blocks whose 3x3 convolution has the stride."""
    nn = lib.nn

    class Block(nn.Module):  # type: ignore[name-defined]
        def __init__(self, inner: int, middle: int, stride: int) -> None:
            super().__init__()
            outer = 4 * middle
            self.conv1 = nn.Conv2d(inner, middle, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(middle)
            self.conv2 = nn.Conv2d(middle, middle, 3, stride, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(middle)
            self.conv3 = nn.Conv2d(middle, outer, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(outer)
            self.short = nn.Identity()
            if inner != outer:
                conv = nn.Conv2d(inner, outer, 1, stride, bias=False)
                self.short = nn.Sequential(conv, nn.BatchNorm2d(outer))

        def forward(self, x: Any) -> Any:
            h = self.bn1(self.conv1(x)).relu()
            h = self.bn2(self.conv2(h)).relu()
            return (self.bn3(self.conv3(h)) + self.short(x)).relu()

    class ResNet(nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
            self.bn = nn.BatchNorm2d(64)
            self.pool = nn.MaxPool2d(3, 2, 1)
            stages: list[Any] = []
            inner = 64
            for stage, count in enumerate(blocks):
                for block in range(count):
                    middle = 64 * 2**stage
                    stages.append(Block(inner, middle, 2 if stage and block == 0 else 1))
                    inner = 4 * middle
            self.stages = nn.Sequential(*stages)
            self.fc = nn.Linear(inner, 1000)

        def forward(self, x: Any) -> Any:
            return self.fc(self.stages(self.pool(self.bn(self.conv(x)).relu())).mean((2, 3)))

    return ResNet()


# --- transformers: Radford et al. 2019; github.com/karpathy/nanoGPT -------------------------------


def gpt(lib: Library, layers: int, width: int, heads: int, length: int, vocabulary: int) -> Any:
    """Logits (B, length, vocabulary) of tokens (B, length)."""
    nn = lib.nn

    class Block(nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.ln1 = nn.LayerNorm(width)
            self.qkv = nn.Linear(width, 3 * width)
            self.proj = nn.Linear(width, width)
            self.ln2 = nn.LayerNorm(width)
            self.fc = nn.Linear(width, 4 * width)
            self.gelu = nn.GELU(approximate="tanh")
            self.fc2 = nn.Linear(4 * width, width)

        def attention(self, x: Any) -> Any:
            b, t, c = x.shape
            parts = self.qkv(x).split(c, 2)
            q, k, v = (p.reshape(b, t, heads, c // heads).transpose(1, 2) for p in parts)
            return self.proj(lib.attention(q, k, v).transpose(1, 2).reshape(b, t, c))

        def forward(self, x: Any) -> Any:
            x = x + self.attention(self.ln1(x))
            return x + self.fc2(self.gelu(self.fc(self.ln2(x))))

    class GPT(nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.wte = nn.Embedding(vocabulary, width)
            self.wpe = nn.Embedding(length, width)
            self.blocks = nn.Sequential(*(Block() for _ in range(layers)))
            self.ln = nn.LayerNorm(width)
            self.head = nn.Linear(width, vocabulary, bias=False)

        def forward(self, tokens: Any) -> Any:
            x = self.wte(tokens) + self.wpe.weight
            return self.head(self.ln(self.blocks(x)))

    return GPT()


# --- a recurrent network of characters ------------------------------------------------------------


def char_lstm(lib: Library, hidden: int = 256, layers: int = 2, vocabulary: int = 65) -> Any:
    """Logits (B, T, vocabulary) of characters (B, T)."""
    nn = lib.nn

    class CharLSTM(nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(vocabulary, hidden)
            self.lstm = lib.LSTM(hidden, hidden, layers)
            self.head = nn.Linear(hidden, vocabulary)

        def forward(self, characters: Any) -> Any:
            return self.head(self.lstm(self.embedding(characters)))

    return CharLSTM()


# --- UNet of a diffusion model: Ho et al. 2020, 2006.11239 ----------------------------------------


def unet(lib: Library, width: int = 32) -> Any:
    """The noise in images (B, 3, 32, 32), given features (B, 64) of the time: two levels down."""
    nn = lib.nn
    features = 4 * width

    class Block(nn.Module):  # type: ignore[name-defined]
        def __init__(self, inner: int, outer: int) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.GroupNorm(8, inner), nn.GroupNorm(8, outer)
            self.conv1 = nn.Conv2d(inner, outer, 3, padding=1)
            self.conv2 = nn.Conv2d(outer, outer, 3, padding=1)
            self.time, self.silu = nn.Linear(features, outer), nn.SiLU()
            self.short = nn.Conv2d(inner, outer, 1) if inner != outer else nn.Identity()

        def forward(self, x: Any, t: Any) -> Any:
            h = self.conv1(self.silu(self.norm1(x))) + self.time(self.silu(t))[:, :, None, None]
            return self.conv2(self.silu(self.norm2(h))) + self.short(x)

    class UNet(nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            w = width
            self.time = nn.Sequential(
                nn.Linear(64, features), nn.SiLU(), nn.Linear(features, features)
            )
            self.first = nn.Conv2d(3, w, 3, padding=1)
            self.down0, self.down1, self.down2 = Block(w, w), Block(w, 2 * w), Block(2 * w, 4 * w)
            self.middle = Block(4 * w, 4 * w)
            self.up1, self.up0 = Block(6 * w, 2 * w), Block(3 * w, w)
            self.pool = nn.AvgPool2d(2)
            self.last = nn.Sequential(nn.GroupNorm(8, w), nn.SiLU(), nn.Conv2d(w, 3, 3, padding=1))

        def forward(self, x: Any, time: Any) -> Any:
            t = self.time(time)
            a = self.down0(self.first(x), t)
            b = self.down1(self.pool(a), t)
            h = self.middle(self.down2(self.pool(b), t), t)
            h = self.up1(lib.cat(lib.double(h), b), t)
            h = self.up0(lib.cat(lib.double(h), a), t)
            return self.last(h)

    return UNet()
