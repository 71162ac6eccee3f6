"""The dataset card: a header that the Hub reads, figures that the tables give, nothing that is not there."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import toy_tables as toy
import yaml

from cvgl_data import hub
from cvgl_data.shards import card
from cvgl_data.shards.tally import Tally, tally

COUNTS = {"references": 2, "queries": {"train": 1}, "pairs": {"train": 1}}
FILES = ["data/references/gallery-00000-of-00001.parquet", "data/queries/train-00000-of-00001.parquet"]
SOURCE = {"kind": "imagery", "name": "toy", "attribution": "Nobody", "licence": "CC0-1.0"}


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "toy"
    toy.pack(out, toy.references(toy.windows(8, 8)), toy.scattered(200, 9, 9))
    return out


def header(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def table(text: str, first: str) -> list[list[str]]:
    """Return the rows of the Markdown table whose first title is given."""
    lines = text.split("\n")
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {first} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_the_header_lists_what_is_there(packed):
    found = header((packed / "README.md").read_text())
    assert found["pretty_name"] == "toy"
    assert found["license"] == "cc0-1.0"
    assert found["size_categories"] == ["n<1K"]
    assert "geospatial" in found["tags"]
    configs = {config["config_name"]: config for config in found["configs"]}
    assert set(configs) == set(card.TABLES)
    assert [name for name, config in configs.items() if config.get("default")] == ["queries"]
    for config in configs.values():
        for part in config["data_files"]:
            assert list(packed.glob(part["path"]))
    assert [part["split"] for part in configs["queries"]["data_files"]] == ["train", "validation", "test"]


def test_figures_are_those_of_the_tables(packed):
    text = (packed / "README.md").read_text()
    metas = {path.name.split("-")[0]: pq.read_table(path) for path in (packed / "data/queries_meta").glob("*")}
    splits = [split for split in ("train", "validation", "test") if split in metas]
    numbers = [str(metas[split].num_rows) for split in splits]
    assert table(text, "area") == [["seattle", "64", *numbers]]
    pairs = pq.read_table(packed / "data/pairs/train-00000-of-00001.parquet").to_pylist()
    positive = [row["decentrality"] for row in pairs if row["relation"] == "positive"]
    quarters = Counter(min(int(value * 4), 3) for value in positive)
    shares = [f"{quarters[number] / len(positive):.1%}" for number in range(4)]
    assert table(text, "split")[0] == ["train", *shares]
    total = sum(meta.num_rows for meta in metas.values())
    assert table(text, "year") == [["2024", "64", str(total)]]
    of_licences = table(text[text.index("| images | licence | rows |") :], "images")
    assert of_licences == [["references", "CC0-1.0", "64"], ["queries", "CC0-1.0", str(total)]]
    assert dict(table(text, "status")) == {"no_reference": str(200 - total)}


def test_the_same_dataset_gives_the_same_card(packed, tmp_path):
    toy.pack(tmp_path / "again", toy.references(toy.windows(8, 8)), toy.scattered(200, 9, 9), batch=11)
    assert (tmp_path / "again/README.md").read_bytes() == (packed / "README.md").read_bytes()


def test_without_images_it_says_so_and_how_to_get_them(packed, tmp_path):
    hub.stage(packed, tmp_path / "staged", repo_id="someone/toy")
    text = (tmp_path / "staged/README.md").read_text()
    assert [config["config_name"] for config in header(text)["configs"]] == [
        "pairs",
        "distance_map",
        "references_meta",
        "queries_meta",
    ]
    assert [c["config_name"] for c in header(text)["configs"] if c.get("default")] == ["queries_meta"]
    assert "cvgl-data pull someone/toy --out DIR" in text
    assert 'load_dataset("someone/toy", "queries_meta")' in text
    assert "**Without the images**" in text
    whole = (packed / "README.md").read_text()
    assert "cvgl-data pull" not in whole
    assert "Without the images" not in whole


def test_figures_and_kept_back_images_are_shown(packed, tmp_path):
    source = tmp_path / "toy"
    references = toy.references(toy.windows(4, 4))
    at = references.schema.get_field_index("licence")
    licences = pa.array(["CC0-1.0"] * 10 + ["mine, all mine"] * 6)
    toy.pack(source, references.set_column(at, "licence", licences), toy.scattered(40, 4, 4))
    (source / "report/figures").mkdir(parents=True)
    (source / "report/figures/photograph.png").write_bytes(b"\x89PNG of somebody's garden")
    hub.stage(source, tmp_path / "staged", repo_id="someone/toy")
    text = (tmp_path / "staged/README.md").read_text()
    assert "![decentrality all](report/figures/decentrality-all.png)" in text
    assert "![map seattle](report/figures/map-seattle.png)" in text
    assert "split" not in "".join(path.name for path in (tmp_path / "staged/report/figures").iterdir())
    assert not (tmp_path / "staged/report/figures/photograph.png").exists()
    assert table(text, "reason") == [["unknown_licence", "6"]]
    assert header(text)["license"] == "other"
    manifest = json.loads((tmp_path / "staged/manifest.json").read_text())
    assert "report/figures/decentrality-all.png" in manifest["files"]


def test_names_cannot_break_the_card():
    name = 'a "quoted": name\n---\n# with {braces} | and pipes'
    source = SOURCE | {"attribution": "A | B\nC"}
    text = card.render(name, FILES, COUNTS, [source])
    assert header(text)["pretty_name"] == name
    assert text.count("\n---\n") == 1
    assert "| imagery | toy | A \\| B C | CC0-1.0 |" in text
    assert "@misc{a_quoted_name_with_braces_and_pipes," in text


def test_licences_of_the_card():
    def of(*licences: str):
        counted = Tally(licences={("queries", licence): 1 for licence in licences})
        return header(card.render("toy", FILES, COUNTS, [SOURCE], counted=counted)).get("license")

    assert of("CC-BY-SA-4.0") == "cc-by-sa-4.0"
    assert of("CC-BY-SA-4.0", "etalab-2.0") == ["cc-by-sa-4.0", "etalab-2.0"]
    assert of("CC-BY-SA-4.0", "Esri Master License Agreement") == "other"
    assert of("CC-BY-SA-4.0", "") == "other"
    assert of() is None


@pytest.mark.parametrize(
    ("number", "size"), [(999, "n<1K"), (1_000, "1K<n<10K"), (250_000, "100K<n<1M"), (1_000_000, "1M<n<10M")]
)
def test_size_categories(number, size):
    counts = {"references": number - 1, "queries": {"train": 1}, "pairs": {}}
    assert header(card.render("toy", FILES, counts, []))["size_categories"] == [size]


def test_an_image_table_of_another_size_is_a_configuration():
    files = [*FILES, "data/queries_768x384/train-00000-of-00001.parquet", "data/notes/train-00000-of-00001.parquet"]
    text = card.render("toy", files, COUNTS, [SOURCE])
    assert [config["config_name"] for config in header(text)["configs"]] == ["references", "queries", "queries_768x384"]
    assert "`queries_768x384` hold the same rows with smaller images" in text


def test_an_empty_dataset_has_a_card():
    text = card.render("toy", [], {"references": 0, "queries": {}, "pairs": {}}, [], counted=tally(Path(), []))
    assert header(text)["configs"] is None
    assert "- Queries: none" in text
