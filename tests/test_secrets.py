"""Keys stay in the requests: no file, log line, message or exception of any run shows one, whole or in part.

The servers know the keys and what they have sent, so what is searched for is what has really been on the wire; some of
them repeat it in every answer.
"""

from __future__ import annotations

import base64
import os
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from urllib.parse import quote, quote_plus

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from leaks import PART, seen_in
from serving import CORNER, box, quicken, serving
from telltale import MODES, Wire, telltale

from cvgl_data.errors import CvglError
from cvgl_data.fetch.mosaic import TileCache
from cvgl_data.http import Http
from cvgl_data.http.running import run
from cvgl_data.simulated_providers import dispatcher, esri, google_id, google_static, google_tiles, mapillary, settings
from cvgl_data.sources import open_imagery, open_panoramas

PROGRAM = Path(sys.executable).with_name("cvgl-data")
IMPATIENT = """
from cvgl_cli.data import main
from cvgl_data.http import Http
from cvgl_data.sources.esri.basemap import EsriBasemap
Http.__init__.__kwdefaults__["backoff_s"] = EsriBasemap.recheck_wait_s = 0.01
main()
"""
"""The program, with shorter waits before it tries again."""

KEYS = {
    "CVGL_ESRI_TOKEN": "AAPKq7Zr/Ue2+Vt9=mXw4~Hs8&Lc1%2FpYd5_Gk3",
    "CVGL_MAPILLARY_TOKEN": "MLY|4711081542|9c1f7e/b3d5+a8042f6e=1b7d9c",
    "CVGL_GOOGLE_KEY": "AIzaSyB7q-Xw2_Rt9+Kd4/Nf6=Hv8Jm3&Pz5Lc0",
    "CVGL_GOOGLE_SIGNING_SECRET": "vK8x_2Qm-Tz7RbW4nYc1sHd6LjE=",
}
WRONG = {
    "CVGL_ESRI_TOKEN": "AAPKwrong/e1T4+z9Qx=v7Bn2~Km6&Jh3%2FrDc8",
    "CVGL_MAPILLARY_TOKEN": "MLY|1300775911|wrong/e4a6+c2917d5f=0e8b3a",
    "CVGL_GOOGLE_KEY": "AIzaSyWrong-Vb5_Ny8+Qj2/Tx7=Lf4Wd9&Zh1Cs",
    "CVGL_GOOGLE_SIGNING_SECRET": "wR0ng_9Hp-Lq3ZtV6mXb2kGf8NdJ=",
}
TARGETS = {
    "esri-live": ("CVGL_ESRI_TOKEN",),
    "mapillary": ("CVGL_MAPILLARY_TOKEN",),
    "google": ("CVGL_GOOGLE_KEY",),
    "google-static": ("CVGL_GOOGLE_KEY", "CVGL_GOOGLE_SIGNING_SECRET"),
}
"""Source to the keys that it sends, or signs with."""


# --- servers


@pytest.fixture(scope="module")
def providers():
    """The simulated providers, with keys of our own."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (esri, mapillary, google_static, google_tiles, settings):
            for name, key in KEYS.items():
                patch.setattr(module, name.removeprefix("CVGL_"), key, raising=False)
        wire = Wire()
        handle = dispatcher.Dispatcher.handle

        async def overheard(self, request):
            wire.add(request.raw_path, request.headers.get("Authorization"))
            return await handle(self, request)

        patch.setattr(dispatcher.Dispatcher, "handle", overheard)
        with serving(esri_token_required=True, google_signature_required=True, flat=0.0) as served:
            yield served, wire


# --- runs


def environment_of(served_environment, keys, **others):
    plain = {name: value for name, value in os.environ.items() if not name.startswith("CVGL_")}
    addresses = {name: value for name, value in served_environment.items() if name.endswith("_URL")}
    state = {name: os.environ[name] for name in ("CVGL_STATE_DIR",)}
    return {**plain, **addresses, **state, **keys, "COLUMNS": "4000", **others}


def begin(words, environment, *, patient=True):
    command = [str(PROGRAM)] if patient else [sys.executable, "-c", IMPATIENT]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    return subprocess.Popen([*command, *map(str, words)], env=environment, **pipes)


def end(process):
    """Return exit code, stdout and stderr."""
    said, complained = process.communicate(timeout=120)
    return process.returncode, said, complained


def words_for(target, folder):
    """Return the command that fetches from one source."""
    if target == "esri-live":
        return ["fetch", "references", *common(folder), "--imagery", target, "--accept-terms", "esri"]
    terms = [] if target == "mapillary" else ["--accept-terms", "google"]
    imagery = "xyz:http://127.0.0.1:9/{z}/{y}/{x}"  # needs no key, and is not asked
    return ["fetch", "queries", *common(folder), "--imagery", imagery, "--panoramas", target, *terms]


def common(folder):
    area = ",".join(f"{edge:.7f}" for edge in box())
    return ["-vv", "--rate", "0", "--bbox", area, "--limit", "2", "--set", "panoramas.width=512", "--out", folder]


# --- the search


def test_the_search_finds_what_is_hidden(tmp_path):
    key = KEYS["CVGL_ESRI_TOKEN"]
    keys = {"k": key}
    hidden = {
        "plain": f"x{key}y",
        "encoded": f"token={quote(key, safe='')}",
        "plus": quote_plus(key),
        "half": key[: PART + 3],
        "base64": base64.b64encode(f"12345{key}6".encode()).decode(),
        "basic": base64.urlsafe_b64encode(f"a:{key}".encode()).decode(),
    }
    for name, text in hidden.items():
        table = pa.table({"error": [text] * 50, "image": [b"x"] * 50})
        (folder := tmp_path / name).mkdir()
        assert seen_in(keys, folder, said=text[:10].encode()) == []
        pq.write_table(table, folder / "a.parquet", compression="zstd")
        with pa.ipc.new_file(
            folder / "b.arrow", table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")
        ) as out:
            out.write_table(table)
        pq.write_table(table.select(["image"]).replace_schema_metadata({"by": text}), folder / "c.parquet")
        (folder / "d.json").write_text(text)
        broken = "\n      ".join(text[at : at + 9] for at in range(0, len(text), 9))
        found = seen_in(keys, folder, said=broken.encode())
        assert sorted(Path(where).name for where, _ in found) == ["a.parquet", "b.arrow", "c.parquet", "d.json", "said"]


# --- runs that succeed


def private(folder, keys, mode=0o600):
    """Write each key to a file; return the variables that name the files."""
    folder.mkdir(exist_ok=True)
    variables = {}
    for name, key in keys.items():
        path = folder / name.lower()
        path.write_text(f"{key}\n", encoding="utf-8")
        path.chmod(mode)
        variables[f"{name}_FILE"] = str(path)
    return variables


@pytest.mark.parametrize("panoramas", ["mapillary", "google", "google-static"])
def test_a_build_shows_no_key(providers, tmp_path, panoramas):
    served, wire = providers
    start = len(wire.requests)
    folder, state = tmp_path / "out", tmp_path / "home" / "state"
    keys = KEYS if panoramas == "google" else private(tmp_path / "keys", KEYS)
    terms = ["--accept-terms", "esri"] if panoramas == "mapillary" else ["--accept-terms=esri", "--accept-terms=google"]
    words = ["build", *common(folder), "--imagery", "esri-live", "--panoramas", panoramas, *terms]
    code, said, complained = end(begin(words, environment_of(served.environment, keys)))
    assert code == 0, complained.decode()
    assert list((folder / "data").rglob("*.parquet"))

    sent = wire.since(start)
    assert sent.keys == {KEYS["CVGL_ESRI_TOKEN"], KEYS[TARGETS[panoramas][0]]}
    assert bool(sent.values("signature")) == (panoramas == "google-static")
    assert bool(sent.values("session")) == (panoramas == "google")
    folders = [folder, state, tmp_path / "home", tmp_path / "cwd"]
    assert seen_in({**KEYS, **sent.passing()}, *folders, said=said, complained=complained) == []
    assert list(state.iterdir()), "what limits remember was to be searched too"


def test_a_plan_shows_no_key(providers, tmp_path):
    served, wire = providers
    start = len(wire.requests)
    words = ["plan", *common("")[:-2], "--panoramas", "google-static", "--discover", "--json"]
    code, said, complained = end(begin(words, environment_of(served.environment, KEYS)))
    assert code == 0, complained.decode()
    sent = wire.since(start)
    assert sent.keys == {KEYS["CVGL_GOOGLE_KEY"]}
    assert seen_in({**KEYS, **sent.passing()}, tmp_path / "home", said=said, complained=complained) == []


def test_the_key_of_a_tile_template(providers, tmp_path):
    served, wire = providers
    start = len(wire.requests)
    template = f"{served.url}/esri/tile/{{z}}/{{y}}/{{x}}?token=${{MY_TILE_KEY}}"
    key = quote(KEYS["CVGL_ESRI_TOKEN"], safe="")  # a template's values are written as they stand in the address
    results = []
    for name, value in (("good", key), ("bad", key[::-1].replace("%", "7"))):
        words = ["fetch", "references", *common(tmp_path / name), "--imagery", f"xyz:{template}"]
        code, said, complained = end(begin(words, environment_of({}, {"MY_TILE_KEY": value}), patient=False))
        results.append(code)
        assert seen_in({"k": value, **KEYS}, tmp_path / name, tmp_path / "home", said=said, complained=complained) == []
    assert results == [0, 1]
    assert len(wire.requests) >= start + 4


# --- keys in files that others can read


@pytest.mark.skipif(sys.platform == "win32", reason="files have no modes")
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_key_file_that_others_can_read_is_refused(providers, tmp_path, mode, monkeypatch):
    served, wire = providers
    start = len(wire.requests)
    for name, value in environment_of(served.environment, private(tmp_path / "keys", KEYS, mode)).items():
        monkeypatch.setenv(name, value)
    for target, (name, *_) in TARGETS.items():
        folder = tmp_path / target
        if mode == 0o644 and target == "esri-live":
            code, said, complained = end(begin(words_for(target, folder), dict(os.environ)))
            assert code == 1
            assert b"chmod 600" in complained
            assert f"{name}_FILE".encode() in complained
            assert seen_in(KEYS, tmp_path / "home", said=said, complained=complained) == []
        else:
            with pytest.raises(CvglError, match="chmod 600") as caught:
                asked(target)
            assert seen_in(KEYS, trace="".join(traceback.format_exception(caught.value)).encode()) == []
    assert wire.requests[start:] == []


# --- runs that fail


def failing(target, folder, environment):
    return begin(words_for(target, folder), environment, patient=False)


def assert_fails_silently(processes, keys, wire, tmp_path):
    passing = {} if wire is None else wire.passing()
    for target, process in processes.items():
        code, said, complained = end(process)
        assert code in (1, 3), (target, complained.decode())
        assert b"Traceback" not in complained, complained.decode()
        assert b"error" in complained
        keep = [tmp_path / target] if (tmp_path / target).exists() else []
        assert seen_in({**keys, **passing}, *keep, said=said, complained=complained) == [], target
    assert seen_in({**keys, **passing}, tmp_path / "home", tmp_path / "cwd") == []


def test_a_key_that_is_refused_is_not_shown(providers, tmp_path):
    served, wire = providers
    start = len(wire.requests)
    environment = environment_of(served.environment, WRONG)
    processes = {target: failing(target, tmp_path / target, environment) for target in TARGETS}
    # The right key with a wrong signature.
    mixed = environment | {"CVGL_GOOGLE_KEY": KEYS["CVGL_GOOGLE_KEY"]}
    (tmp_path / "b").mkdir()
    processes["b/signature"] = failing("google-static", tmp_path / "b" / "signature", mixed)
    assert_fails_silently(processes, {**KEYS, **{f"wrong {k}": v for k, v in WRONG.items()}}, None, tmp_path)
    sent = wire.since(start)
    assert sent.keys >= {*WRONG.values()} - {WRONG["CVGL_GOOGLE_SIGNING_SECRET"]}


def test_a_server_that_is_down(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    environment = environment_of(addresses_at(url), KEYS)
    processes = {target: failing(target, tmp_path / target, environment) for target in ("esri-live", "google-static")}
    assert_fails_silently(processes, KEYS, None, tmp_path)


def addresses_at(url):
    names = ("ESRI", "WAYBACK", "WAYBACK_CONFIG", "PANORAMAX", "MAPILLARY_GRAPH", "MAPILLARY_TILES", "GOOGLE_STATIC")
    return {f"CVGL_{name}_URL": f"{url}/{name.lower()}" for name in (*names, "GOOGLE_TILES")}


@pytest.mark.parametrize(
    ("mode", "targets"),
    [("refused", [*TARGETS]), ("garbage", ["esri-live", "google"]), ("wrong-types", ["mapillary", "google-static"])],
)
def test_a_server_that_tells(tmp_path, mode, targets):
    with telltale(mode) as (url, wire):
        environment = environment_of(addresses_at(url), KEYS)
        processes = {target: failing(target, tmp_path / target, environment) for target in targets}
        assert {process.wait(120) for process in processes.values()} <= {1, 3}
        assert wire.keys == {KEYS[TARGETS[target][0]] for target in targets}
        assert_fails_silently(processes, KEYS, wire, tmp_path)


def asked(target):
    """Ask a source for one item, with one client for all its requests."""

    async def work(http, cancel):
        if target == "esri-live":
            await TileCache(source, http).fetch(CORNER)
        else:
            west, south, _, _ = box()
            pano_id = "123456789" if target == "mapillary" else google_id(west, south)
            await source.fetch(pano_id, http)

    kind = open_imagery if target == "esri-live" else open_panoramas
    source = kind(target, {}, workers=1)
    try:
        run(work, rate_per_s=0.0)
    finally:
        source.close()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("mode", MODES)
def test_exceptions_show_no_key(monkeypatch, caplog, mode, target):
    quicken(monkeypatch)
    monkeypatch.setitem(Http.__init__.__kwdefaults__, "max_tries", 2)
    caplog.set_level("DEBUG")
    with telltale(mode) as (url, wire):
        for name, value in {**addresses_at(url), **KEYS}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(CvglError) as caught:
            asked(target)
        assert KEYS[TARGETS[target][0]] in wire.keys
        error = caught.value
        shown = [*traceback.format_exception(error), repr(error), str(vars(error)), caplog.text]
        assert seen_in({**KEYS, **wire.passing()}, shown="\n".join(shown).encode()) == []
