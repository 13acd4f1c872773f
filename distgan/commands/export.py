"""`distgan export`: a generator to be used without distgan, with a model card in Hugging Face's format.

run -> generator.safetensors + generator.json, or generator.onnx -> README.md, samples.png
"""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from distgan.config.flat import identity_values
from distgan.config.schema import Config
from distgan.errors import UserError
from distgan.images import save_grid, to_uint8
from distgan.networks.base import GeneratorSpec
from distgan.networks.generator_file import find_generator, load_generator, save_generator
from distgan.networks.latents import generate, sample_latents
from distgan.networks.mixture import MixtureSpec
from distgan.reporting.run_record import RunRecord, read_record
from distgan.run.files import is_run
from distgan.text import format_number

CARD_MARK = "<!-- Written by distgan export. Take this line out, and it is never overwritten. -->"
TOLERANCE = 1e-3  # between torch and onnxruntime, of values in [-1, 1]: an eighth of a grey level

READING = """import json, math, pathlib, torch, torch.nn.functional as F
raw = bytearray(pathlib.Path("generator.safetensors").read_bytes())
start = 8 + int.from_bytes(raw[:8], "little")  # of the numbers; before them their names, shapes and places
t = {name: torch.frombuffer(raw, dtype=torch.float32, count=math.prod(at["shape"]), offset=start + at["data_offsets"][0])
     .view(at["shape"]) for name, at in json.loads(raw[8:start]).items() if at.get("dtype") == "F32"}
"""

LOADING = {
    "dcgan": READING
    + """def generate(latents):  # [B, latent_dim] from N(0, 1) -> images [B, C, H, W] in [-1, 1]
    x = F.linear(latents, t["project.weight"]).unflatten(1, (-1, 4, 4))
    for i in range(0, 3 * sum(name.endswith("running_mean") for name in t), 3):
        x = F.relu(F.batch_norm(x, *(t[f"layers.{i}.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))))
        x = F.conv_transpose2d(x, t[f"layers.{i + 2}.weight"], t.get(f"layers.{i + 2}.bias"), stride=2, padding=1)
    return x.tanh()""",
    "resnet": READING
    + """norms = "running_mean", "running_var", "weight", "bias"
norm = lambda x, at: F.relu(F.batch_norm(x, *(t[f"{at}.{name}"] for name in norms)))
conv = lambda x, at, padding: F.conv2d(x, t[f"{at}.weight"], t.get(f"{at}.bias"), padding=padding)
def generate(latents):  # [B, latent_dim] from N(0, 1) -> images [B, C, H, W] in [-1, 1]
    x = F.linear(latents, t["project.weight"], t["project.bias"]).unflatten(1, (-1, 4, 4))
    for i in range(n := sum(name.endswith("shortcut.0.weight") for name in t)):
        y = conv(F.interpolate(norm(x, f"layers.{i}.residual.0"), scale_factor=2), f"layers.{i}.residual.3", 1)
        x = F.interpolate(conv(x, f"layers.{i}.shortcut.0", 0), scale_factor=2)
        x = x + conv(norm(y, f"layers.{i}.residual.4"), f"layers.{i}.residual.6", 1)
    return conv(norm(x, f"layers.{n}"), f"layers.{n + 2}", 1).tanh()""",
}
"""How to use the safetensors file with torch alone, by architecture; stands in the model card."""


def export(source: Path, out: Path, *, format: str, license: str) -> list[str]:
    """Write a generator with its card to a folder; returns what was written, a sentence each. Raises UserError."""
    loaded = load_generator(source)
    generator, spec = loaded.network, loaded.spec
    told = read_facts(source)
    try:
        out.mkdir(parents=True, exist_ok=True)
        said = [WRITERS[format](generator, spec, out, told)]
        save_grid(
            to_uint8(generate(generator, sample_latents(64, spec, seed=0))), out / "samples.png"
        )
        said.append(
            write_card(
                out,
                spec,
                told,
                story=read_record(source) if is_run(source) else None,
                license=license,
            )
        )
    except OSError as error:
        raise UserError(
            f"cannot write to {out}: {error.strerror or error}; choose another place with --out"
        ) from None
    return said


def read_facts(source: Path) -> dict[str, Any]:
    """What the generator's JSON tells beside its shape."""
    told = json.loads(find_generator(source).description.read_text())
    facts = {
        "images_seen": told.get("images_seen"),
        "dataset": told.get("dataset") or told.get("fingerprint"),
    }
    return facts | {"weights": told.get("weights", "moving average")}


def write_safetensors(
    generator: nn.Module, spec: GeneratorSpec, out: Path, told: dict[str, Any]
) -> str:
    """generator.safetensors and generator.json."""
    save_generator(generator, spec, out, facts=told)
    return f"wrote {out / 'generator.safetensors'} and {out / 'generator.json'}"


def write_onnx(generator: nn.Module, spec: GeneratorSpec, out: Path, told: dict[str, Any]) -> str:
    """generator.onnx for batches of any size, held against torch by onnxruntime."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 which torch.onnx needs
    except ImportError as error:
        raise UserError(
            f"--format onnx needs {error.name}; type: pip install 'distgan[onnx]'"
        ) from None
    path, latents = out / "generator.onnx", sample_latents(7, spec, seed=0)
    generator = generator.to(memory_format=torch.contiguous_format)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own libraries, about their own future
        program = torch.onnx.export(
            generator, (latents[:2],), dynamo=True, verbose=False, input_names=["latents"], output_names=["images"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )  # fmt: skip
    assert program is not None
    program.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    worst = 0.0
    for batch in (latents, latents[:1]):
        (images,) = session.run(None, {"latents": batch.numpy()})
        worst = max(
            worst, float((torch.from_numpy(images) - generate(generator, batch)).abs().max())
        )
    if worst > TOLERANCE:
        raise UserError(
            f"onnxruntime's images differ from torch's by {worst:.2g}; use --format safetensors"
        )
    return f"wrote {path}; onnxruntime's images are torch's to {worst:.1g}"


WRITERS = {"safetensors": write_safetensors, "onnx": write_onnx}


def write_card(
    out: Path, spec: GeneratorSpec, told: dict[str, Any], *, story: RunRecord | None, license: str
) -> str:
    """README.md, the model card; one that a person has made their own is kept."""
    path = out / "README.md"
    if path.exists() and CARD_MARK not in path.read_text():
        return f"kept {path}, which is yours"
    path.write_text(model_card(out, spec, told, story=story, license=license))
    return f"wrote {path}; fill in what only you know: the images, their licence, what the model is for"


def model_card(
    out: Path, spec: GeneratorSpec, told: dict[str, Any], *, story: RunRecord | None, license: str
) -> str:
    """The card's text, of the files that lie in the folder."""
    head: dict[str, Any] = {
        "license": license,
        "library_name": "pytorch",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["gan", spec.architecture, "distgan"],
    }
    kimg = (
        f"{format_number(told['images_seen'] / 1000)} thousand real images"
        if told["images_seen"]
        else "unknown"
    )
    kind = spec.architecture.upper()
    if isinstance(spec, MixtureSpec):
        kind = f"{spec.part.architecture.upper()} for each of {len(spec.classes)} classes"
    lines = [
        "---", yaml.safe_dump(head, sort_keys=False, allow_unicode=True).strip(), "---", "", CARD_MARK, "",
        f"# {literal(story.name) if story else spec.architecture.upper()}", "",
        f"A generator of {spec.image_size}x{spec.image_size} images with {spec.channels} "
        f"channel{'s' if spec.channels > 1 else ''}, trained as a {kind} with distgan.", "",
        "![samples](samples.png)", "", "## Use", "",
    ]  # fmt: skip
    if (out / "generator.safetensors").exists() and spec.architecture in LOADING:
        use = f"images = generate(torch.randn(16, {spec.latent_dim}))"
        lines += [
            "With torch alone:",
            "",
            "```python",
            LOADING[spec.architecture],
            "",
            use,
            "```",
            "",
        ]
    if (out / "generator.safetensors").exists() and isinstance(spec, MixtureSpec):
        lines += [
            "With distgan; the first value of a latent chooses the class:",
            "",
            "```python",
            "from distgan.networks.generator_file import load_generator",
            "",
            'generator = load_generator("generator.safetensors")',
            "images = generator.sample(16)",
            "```",
            "",
        ]
    if (out / "generator.onnx").exists():
        lines += ["With onnxruntime:", "", "```python", "import numpy as np, onnxruntime",
                  'session = onnxruntime.InferenceSession("generator.onnx")',
                  f'(images,) = session.run(None, {{"latents": np.random.randn(16, {spec.latent_dim}).astype("float32")}})',
                  "```", ""]  # fmt: skip
    lines += [
        "Latents are drawn from N(0, 1); images are float32 [B, C, H, W] in [-1, 1].",
        "",
        "## Training",
        "",
    ]
    rows = [
        ("data fingerprint", told["dataset"] or "unknown"),
        ("seen", kimg),
        ("weights", told["weights"]),
    ]
    if story is not None:
        counts = {*identity_values(Config()), "train.epochs", "train.kimg"}
        changed = [each for each in story.settings_table if each.is_changed and each.name in counts]
        rows += [(setting.name, setting.value) for setting in changed]
    lines += table(("", ""), rows)
    return "\n".join([*lines, *quality_lines(story)]) + "\n"


def quality_lines(story: RunRecord | None) -> list[str]:
    """The last evaluation with its protocol."""
    lines = ["", "## Quality", ""]
    if story is None or not story.evaluations:
        return [*lines, "Not measured."]
    last = story.evaluations[-1]
    reals = last.reals
    if story.verdict:
        lines += [
            f"Verdict of the training: {literal(story.verdict)} {literal(story.verdict_detail)}".rstrip(),
            "",
        ]
    lines += table(
        ("metric", "fakes", "real images"),
        [
            (name, format_number(value), format_number(reals.get(name)))
            for name, value in last.values.items()
        ],
    )
    return [*lines, "", literal(story.protocol_line)]


def table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> list[str]:
    """A Markdown table whose cells are shown as they are."""
    lines = [head, ("---",) * len(head), *([literal(str(cell)) for cell in row] for row in rows)]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def literal(text: str) -> str:
    """Text from outside as Markdown code, on one line, or nothing."""
    shown = " ".join(text.split()).replace("`", "'").replace("|", "\\|")
    return f"`{shown}`" if shown else ""
