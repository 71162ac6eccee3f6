"""Hand a trained model on: a folder for the Hub, loading it back, and ONNX files for other runtimes.

```
model.safetensors   weights                         README.md          model card with what was measured
recipe.toml         the resolved recipe             calibration.json   how sure to be of a result, if it was fitted
config.json         what other tools look for       metrics/*.json     the evaluations that the card shows
```
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cvgl_data.errors import CheckpointError, HubError, RecipeError, WorkspaceError
from cvgl_data.recipe import to_tables
from cvgl_models.checkpoint import save_weights
from cvgl_models.evaluation import METRICS
from cvgl_models.evaluation.calibration import CALIBRATION, kept_calibration
from cvgl_models.evaluation.embeddings import EXPORTED, load_retrieval_system
from cvgl_models.recipe import ModelRecipe
from cvgl_models.run_folder import EVAL, RECIPE, write_text
from cvgl_models.serving import Model, load_model
from cvgl_models.systems import RetrievalModule
from cvgl_models.transforms import Batch

CARD, CONFIG, MEASURED = "README.md", "config.json", "metrics"
FILES = (EXPORTED, RECIPE, CONFIG, CARD, CALIBRATION, f"{MEASURED}/*.json", "onnx/*.onnx", "onnx/*.onnx.data")
_SIDES = ("query", "reference")


def export_model(run: Path, out: Path, *, name: str = "", licence: str = "", overwrite: bool = False) -> Path:
    """Write a folder that is a model repository of the Hub, and that `from_pretrained` loads.

    Args:
        run: Run folder of a trained model.
        out: Folder to write.
        name: Title of the card; default: the recipe's name.
        licence: Identifier of the weights' licence for the card, like ``apache-2.0``; the Hub asks for one.
        overwrite: Replace an export that is there already, and nothing else.

    Returns:
        The folder.

    Raises:
        CheckpointError: If the run has no trained weights.
        WorkspaceError: If the folder cannot be written, or holds something else.
    """
    system, recipe, weights = load_retrieval_system(run)
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            if not (overwrite and (out / CONFIG).is_file() and (out / EXPORTED).is_file()):
                raise WorkspaceError(f"'{out}' is not empty; choose another folder" + _hint(out))
            for pattern in FILES:
                for path in out.glob(pattern):
                    path.unlink()
        (out / MEASURED).mkdir(parents=True, exist_ok=True)
        save_weights(out / EXPORTED, system, {"source": weights, "format": "pt"})
        shutil.copyfile(run / RECIPE, out / RECIPE)
        exported = load_retrieval_system(out)[2]
        reports = _reports(run, weights)
        for part, report in reports.items():
            write_text(out / MEASURED / f"{part}.json", json.dumps(report, indent=2) + "\n")
        fitted = kept_calibration(run, weights)
        if fitted is not None:
            write_text(out / CALIBRATION, json.dumps({**asdict(fitted), "weights": exported}, indent=2) + "\n")
        write_text(out / CONFIG, json.dumps(_config(system, recipe), indent=2) + "\n")
        write_text(out / CARD, card(recipe, reports, name=name or recipe.name, licence=licence))
    except OSError as error:
        raise WorkspaceError(f"export '{out}' cannot be written: {error}") from error
    return out


def card(recipe: ModelRecipe, reports: Mapping[str, Mapping[str, Any]], *, name: str, licence: str = "") -> str:
    """Return the model card: front matter, what the model is, what was measured, how to use it."""
    views = recipe.views
    height, width = views.query_size_px
    front = ["library_name: cvgl", "pipeline_tag: image-feature-extraction"]
    front += [f"license: {licence}"] if licence else []
    front += ["tags:", "- cross-view-geo-localization", "- image-retrieval", f"- {recipe.system}"]
    lines = ["---", *front, "---", "", f"# {name}", ""]
    lines += [
        f"A `{recipe.system}` model of cross-view geo-localization with the backbone `{recipe.encoder.backbone}`: it",
        "embeds street-level panoramas and north-up overhead images, so that the image that shows a panorama's place",
        "is its nearest neighbor.",
        "",
        f"- Query: {'equirectangular panorama' if views.query == 'panorama' else 'top view of a panorama'}, "
        f"north-aligned, {width}x{height} px",
        f"- Reference: {views.reference_px}x{views.reference_px} px",
        f"- Weights shared by both: {'yes' if recipe.encoder.shared else 'no'}",
        "",
        "## Measured",
        "",
    ]
    lines += _measured(reports) if reports else ["Nothing was measured before the export."]
    lines += [
        "",
        "## Use",
        "",
        "```python",
        "from cvgl_models.export import from_pretrained",
        "",
        'model = from_pretrained("user/name")  # or a folder',
        "query = model.embed_queries([panorama_bytes], heading_deg=0.0)  # (1, D)",
        "reference = model.embed_references([overhead_bytes])",
        "score = (query * reference).sum()",
        "```",
        "",
    ]
    return "\n".join(lines)


def push_model(
    folder: Path, repo_id: str, *, private: bool = False, message: str = "", revision: str | None = None
) -> str:
    """Push an exported model to the Hub and return its address.

    Args:
        folder: What `export_model` wrote.
        repo_id: ``user/name``; made if it does not exist.
        private: Make the repository private.
        message: Of the commit.
        revision: Branch (default: ``main``).

    Raises:
        CheckpointError: If the folder is no exported model.
        HubError: If the Hub refuses or cannot be reached.
    """
    if not (folder / CONFIG).is_file() or not (folder / EXPORTED).is_file():
        raise CheckpointError(f"'{folder}' is no exported model; export the run first")
    hub = _hub()
    hub.client.check_repo_id(repo_id)
    with hub.client.explained(repo_id, writing=True), hub.client.quiet(True):
        api = hub.HfApi()
        url = str(hub.client.again(lambda: api.create_repo(repo_id, private=private, exist_ok=True), "creating"))
        if revision:
            hub.client.again(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True), "branching")
        hub.client.again(
            lambda: api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=revision,
                commit_message=message or "Model",
                allow_patterns=list(FILES),
                delete_patterns=[f"{MEASURED}/*.json", "onnx/*", CALIBRATION],
            ),
            "uploading",
        )
    return url


def from_pretrained(path_or_repo: str | Path, *, revision: str | None = None) -> Model:
    """Load an exported model from a folder or from the Hub.

    Args:
        path_or_repo: Folder, or ``user/name``.
        revision: Branch, tag or commit on the Hub.

    Raises:
        CheckpointError: If it is no exported model, or its weights do not fit.
        HubError: If the Hub refuses or cannot be reached.
    """
    return load_model(model_folder(path_or_repo, revision=revision))


def model_folder(path_or_repo: str | Path, *, revision: str | None = None) -> Path:
    """Return the folder of an exported model or a run, downloaded first if it is on the Hub; errors as above."""
    if Path(path_or_repo).is_dir():
        return Path(path_or_repo)
    name, hub = str(path_or_repo), _hub()
    if not hub.client.is_repo_id(name):
        raise CheckpointError(f"there is no model folder '{name}', and it is no user/name of the Hub either")
    with hub.client.explained(name), hub.client.quiet(True):
        folder = hub.client.again(
            lambda: hub.snapshot_download(name, revision=revision, allow_patterns=list(FILES)), "downloading"
        )
    if not (Path(folder) / EXPORTED).is_file():
        raise HubError(f"'{name}' on the Hub is no model that cvgl exported: it has no {EXPORTED}")
    return Path(folder)


def export_onnx(run: Path, out: Path, *, opset: int | None = None) -> tuple[Path, Path]:
    """Write ``query.onnx`` and ``reference.onnx``: float32 (B, 3, H, W) in [0, 1] to (B, D) of unit length, B free.

    Queries are what `cvgl_models.batches.view_of` makes of a panorama, divided by 255, references likewise.

    Args:
        run: Run folder, or the folder of an exported model.
        out: Folder to write.
        opset: ONNX operator set; None: the exporter's own choice.

    Returns:
        Both files.

    Raises:
        CheckpointError: If the run has no trained weights, or the network cannot be exported.
        RecipeError: If the packages that write ONNX are not installed.
    """
    missing = [name for name in ("onnx", "onnxscript") if not _is_installed(name)]
    if missing:
        raise RecipeError(f"writing ONNX takes {' and '.join(missing)}; install with `pip install onnx onnxscript`")
    system, recipe, _ = load_retrieval_system(run)
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for side in _SIDES:
        path = out / f"{side}.onnx"
        program = traced_branch(system.cpu(), recipe, side)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.onnx.export(program, (), path, opset_version=opset, dynamo=True, external_data=False)
        except Exception as error:
            raise CheckpointError(
                f"the {side} branch cannot be written as ONNX: {str(error).splitlines()[0]}"
            ) from error
        paths.append(path)
    return paths[0], paths[1]


def traced_branch(system: RetrievalModule, recipe: ModelRecipe, side: str) -> Any:
    """Return one branch as an exported program of torch: ``image`` and a tensor per further view.

    Raises:
        CheckpointError: If the network has parts that cannot be traced.
    """
    branch = _Branch(system, side).eval()
    sizes = {"query": recipe.views.query_size_px, "bev": (recipe.views.bev_px,) * 2}
    images = [torch.rand(2, 3, *sizes.get(name, (recipe.views.reference_px,) * 2)) for name in branch.fields]
    any_batch = {0: torch.export.Dim("batch", min=1, max=65536)}
    shapes = (any_batch, (any_batch,) * (len(images) - 1)) if len(images) > 1 else (any_batch,)
    try:
        with torch.no_grad():
            return torch.export.export(branch, tuple(images), dynamic_shapes=shapes)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"the {side} branch cannot be traced: {reason}") from error


class _Branch(nn.Module):
    """One side of a system as a function of tensors."""

    def __init__(self, system: RetrievalModule, side: str) -> None:
        super().__init__()
        self.system = system
        self.fields = system.query_views if side == "query" else ("reference",)
        self.embed = system.embed_queries if side == "query" else system.embed_references

    def forward(self, image: Tensor, *more: Tensor) -> Tensor:
        """Return (B, D) embeddings of (B, 3, H, W) images in [0, 1], one for each view that the side has."""
        return self.embed(Batch(**dict(zip(self.fields, (image, *more), strict=True))))


@dataclass(frozen=True, slots=True)
class _Hub:
    client: Any
    HfApi: Any
    snapshot_download: Any


def _hub() -> _Hub:
    """Import what talks to the Hub only when somebody wants to."""
    try:
        import huggingface_hub

        from cvgl_data.hub import client
    except ImportError as error:
        raise HubError(f"the Hub's client is not installed ({error}); `pip install huggingface_hub`") from error
    return _Hub(client, huggingface_hub.HfApi, huggingface_hub.snapshot_download)


def _is_installed(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


def _hint(out: Path) -> str:
    return " or pass --overwrite" if (out / CONFIG).is_file() and (out / EXPORTED).is_file() else ""


def _config(system: RetrievalModule, recipe: ModelRecipe) -> dict[str, Any]:
    height, width = recipe.views.query_size_px
    with torch.no_grad():
        where = next(system.parameters()).device
        size = recipe.views.reference_px
        embedded = _Branch(system, "reference").eval()(torch.zeros(1, 3, size, size, device=where))
    return {
        "library_name": "cvgl",
        "model_type": recipe.system,
        "embedding_size": int(embedded.shape[1]),
        "query_size_px": [height, width],
        "reference_size_px": [recipe.views.reference_px] * 2,
        "num_parameters": sum(parameter.numel() for parameter in system.parameters()),
        "recipe": to_tables(recipe),
    }


def _reports(run: Path, weights: str) -> dict[str, dict[str, Any]]:
    """Return the evaluations of these weights by folder name; those of other weights are not the model's."""
    reports = {}
    for path in sorted((run / EVAL).glob(f"*/{METRICS}")):
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            if report["setting"]["weights"] == weights:
                reports[path.parent.name] = report
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return reports


def _measured(reports: Mapping[str, Mapping[str, Any]]) -> list[str]:
    heads = ["split", "queries", "references", "recall@1", "recall@5", "recall@10", "recall@1%"]
    heads += ["hit rate (cover)", "hit rate (strict)", "median error"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for report in reports.values():
        setting, conditions = report["setting"], report["setting"]["conditions"]
        name = " ".join(part for part in (setting["split"], setting["protocol"]) if part)
        if conditions["fov_deg"] != 360:
            name += f", {conditions['fov_deg']:g}° field of view"
        if conditions["heading"] == "unknown":
            name += ", unknown heading"
        cells = [name, f"{report['num_queries']:,}", f"{report['num_references']:,}"]
        keys = ("recall_at_1", "recall_at_5", "recall_at_10", "recall_at_1_percent")
        shares = (report[key] for key in (*keys, "hit_rate_cover", "hit_rate_strict"))
        cells += ["n/a" if share is None else f"{100 * share:.1f} %" for share in shares]
        cells.append("n/a" if report["median_error_m"] is None else f"{report['median_error_m']:,.1f} m")
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", "Ties and NaN count against the query; recall@1% rounds the share of the gallery up."]
