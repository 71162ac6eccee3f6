"""Google street view by the Street View Static API: six views of 90 degrees, stitched to a panorama."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from urllib.parse import quote, urlencode, urlsplit

import numpy as np
import yarl

from cvgl_data.aoi import AreaOfInterest
from cvgl_data.environment import base_url, secret
from cvgl_data.errors import FetchError, NoPanorama, SourceStopped
from cvgl_data.http import Http, answers
from cvgl_data.http.hosts import Quota
from cvgl_data.http.responses import Response
from cvgl_data.images import Pixels, decode, encode_jpeg
from cvgl_data.panorama import View, from_views
from cvgl_data.redaction import redact
from cvgl_data.sources import google
from cvgl_data.types import Cost, LonLat, Outcome, Panorama, PanoramaRef

VIEW_PX = 640
"""The largest that the service sends."""

VIEWS = ((0, 0), (90, 0), (180, 0), (270, 0), (0, 90), (0, -90))
"""Heading and pitch of the six views, degrees: the cheapest full cover."""

FOV_DEG = 90
WIDTH_PX = 2048

_QUOTA = Quota("google-static", per_minute=30_000)
_USD_PER_IMAGE = 7.0 / 1000
_ASKED_AT_ONCE = 64


class _Status(google.Answer):
    status: answers.Text
    error_message: answers.Text | None = None


class _Location(google.Answer):
    lat: answers.Lat
    lng: answers.Lon


class _Found(google.Answer):
    pano_id: google.PanoId
    location: _Location
    date: google.Date | None = None
    copyright: answers.Text | None = None


class GoogleStaticPanoramas:
    """Panoramas from the Street View Static API; needs ``CVGL_GOOGLE_KEY``, signs with ``CVGL_GOOGLE_SIGNING_SECRET``.

    A panorama is north-aligned by construction. Whether it is upright is unknown: the service gives pitch relative to
    the vehicle, and tells neither tilt nor roll. That headings stay as asked for where the view is straight up or down
    has not been verified on a real panorama.

    Args:
        spacing_m: Grid that discovery asks along. Per location it finds the nearest panorama only.
    """

    name = "google-static"
    attribution = google.ATTRIBUTION
    licence = google.LICENCE
    terms = google.TERMS

    def __init__(self, spacing_m: float = 25.0) -> None:
        self._spacing_m = google.check_spacing(spacing_m)
        self._base = base_url("CVGL_GOOGLE_STATIC_URL", "https://maps.googleapis.com/maps/api/streetview")

    def cost(self) -> Cost:
        """Return what a panorama takes."""
        return Cost(
            requests={urlsplit(self._base).netloc: len(VIEWS) + 1.0},
            bytes=len(VIEWS) * 60_000.0,
            usd=len(VIEWS) * _USD_PER_IMAGE,
            note="6 images at $7.00 per 1,000 (up to 100,000; an older price page: verify) and 1 metadata request, "
            "free by that page; bytes are a guess of 60 kB per image",
        )

    def check_access(self) -> None:
        """Raise `RecipeError` if there is no key."""
        google.key(self.name)

    def discovery(self, area: AreaOfInterest) -> dict[str, float]:
        """Return host to requests that `discover` sends: free metadata, one per location of the grid."""
        return {urlsplit(self._base).netloc: float(sum(1 for _ in google.locations(area, self._spacing_m)))}

    async def discover(self, area: AreaOfInterest, http: Http) -> AsyncIterator[PanoramaRef | FetchError]:
        """Yield the panoramas nearest to the locations of a grid; see `PanoramaSource.discover`."""
        seen: set[str] = set()
        for some in google.batches(google.locations(area, self._spacing_m), _ASKED_AT_ONCE):
            for found in await google.together(self._nearest(location, http) for location in some):
                if isinstance(found, FetchError):
                    yield found
                elif found is not None and found.pano_id not in seen:
                    seen.add(found.pano_id)
                    if area.contains(found.lon, found.lat):
                        yield found

    async def fetch(self, pano_id: str, http: Http) -> Panorama:
        """Return the panorama, 2048x1024; see `PanoramaSource.fetch`."""
        google.check_id(pano_id, self.name)
        found = await self._metadata({"pano": pano_id}, http, pano_id)
        responses = await google.together(self._view(pano_id, *pose, http) for pose in VIEWS)
        try:
            image = await asyncio.to_thread(stitched, [response.body for response in responses])
        except FetchError as error:
            error.source, error.item = self.name, pano_id
            raise
        return Panorama(
            pano_id=pano_id,
            image=image,
            lon=found.location.lng,
            lat=found.location.lat,
            heading_deg=0.0,
            captured=found.date or "",
            licence=self.licence,
            creator=found.copyright or "",
            pose_source="static-views",
            robots=responses[0].validators["robots"],
        )

    def close(self) -> None:
        """Do nothing; the connections belong to the `Http`."""

    def url(self, path: str, parameters: Mapping[str, str]) -> str:
        """Return the address of a request, with the key, signed if there is a secret; parameters keep their order."""
        query = urlencode({**parameters, "key": google.key(self.name).reveal()}, quote_via=quote, safe=",")
        # In the very spelling that will be sent, or the signature would be another.
        address = str(yarl.URL(f"{self._base}{path}?{query}"))
        signing = secret("CVGL_GOOGLE_SIGNING_SECRET")
        return google.signed(address, signing.reveal()) if signing else address

    async def _nearest(self, location: LonLat, http: Http) -> PanoramaRef | FetchError | None:
        """Ask for the panorama nearest to a location; ``None`` if there is none."""
        place = f"{location.lat:.7f},{location.lon:.7f}"
        asked = {"location": place, "radius": str(google.radius_m(self._spacing_m)), "source": "outdoor"}
        try:
            found = await self._metadata(asked, http, f"location {place}")
        except (NoPanorama, SourceStopped) as error:
            if isinstance(error, SourceStopped):
                raise
            return None
        except FetchError as error:
            return error
        return PanoramaRef(
            pano_id=found.pano_id, lon=found.location.lng, lat=found.location.lat, captured=found.date or ""
        )

    async def _metadata(self, asked: Mapping[str, str], http: Http, item: str) -> _Found:
        url = self.url("/metadata", asked)
        response = await http.get(url, accept=google.REFUSALS, source=self.name, item=item)
        return _found(response, source=self.name, item=item)

    async def _view(self, pano_id: str, heading_deg: int, pitch_deg: int, http: Http) -> Response:
        asked = {
            "size": f"{VIEW_PX}x{VIEW_PX}",
            "pano": pano_id,
            "heading": str(heading_deg),
            "pitch": str(pitch_deg),
            "fov": str(FOV_DEG),
            "return_error_code": "true",  # otherwise a gray image with 200
        }
        options = {"source": self.name, "item": pano_id}
        response = await http.get(self.url("", asked), accept=google.REFUSALS, quota=_QUOTA, **options)
        if response.status >= 400:
            raise google.refusal(response, source=self.name, item=pano_id)
        if response.body[:1] == b"{":  # a status in the place of an image
            _found(response, **options)
        size = google.size_of(response, **options)
        if size != (VIEW_PX, VIEW_PX):
            text = f"view {heading_deg},{pitch_deg} is {size[0]}x{size[1]} pixels, not {VIEW_PX}x{VIEW_PX}"
            raise FetchError(text, outcome=Outcome.WRONG_SIZE, **options)
        return response


def _found(response: Response, *, source: str, item: str) -> _Found:
    """Return what the metadata says of a panorama, or raise the class of its status."""
    try:
        value = answers.load(response, source=source, item=item)
        answer = answers.check(_Status, value, source=source, item=item)
    except FetchError:
        if response.status >= 400:
            raise google.refusal(response, source=source, item=item) from None
        raise
    if answer.status == "OK" and response.status < 400:
        return answers.check(_Found, value, source=source, item=item)
    name = re.sub(r"[^A-Za-z_]", "?", answer.status[:40])
    more = f" ({redact(answer.error_message)[:160]!r})" if answer.error_message else ""
    text = f"the service answers {name}{more}: {response.url}"
    match answer.status:
        case "ZERO_RESULTS" | "NOT_FOUND":
            raise NoPanorama(text, source=source, item=item)
        case "OVER_QUERY_LIMIT":
            raise SourceStopped(text, source=source, item=item, outcome=Outcome.QUOTA)
        case "REQUEST_DENIED":
            raise SourceStopped(text, source=source, item=item, outcome=Outcome.AUTH)
        case "INVALID_REQUEST":
            raise FetchError(text, source=source, item=item, outcome=Outcome.NOT_FOUND)
        case "UNKNOWN_ERROR":
            raise FetchError(text, source=source, item=item, outcome=Outcome.SERVER_ERROR)
    if response.status >= 400:
        raise google.refusal(response, source=source, item=item)
    raise FetchError(text, source=source, item=item, outcome=Outcome.DECODE_ERROR)


def stitched(views: Sequence[bytes]) -> bytes:
    """Return the panorama of the six `VIEWS` as a JPEG of 2048x1024 pixels.

    Raises:
        FetchError: ``decode_error`` if a view is damaged, ``constant_tile`` if one shows nothing.
    """
    shots = []
    for image, (heading_deg, pitch_deg) in zip(views, VIEWS, strict=True):
        pixels = decode(image)
        if shows_nothing(pixels, is_pole=pitch_deg != 0):
            text = f"view {heading_deg},{pitch_deg} shows nothing: it is all of one color"
            raise FetchError(text, outcome=Outcome.CONSTANT_TILE)
        shots.append(View(pixels, heading_deg, pitch_deg, FOV_DEG))
    return encode_jpeg(from_views(shots, WIDTH_PX, WIDTH_PX // 2))


def shows_nothing(pixels: Pixels, *, is_pole: bool) -> bool:
    """Return whether a view is a placeholder.

    Towards the horizon: at least 95 % of the pixels have one color, give or take 2 of 255, since placeholders carry a
    line of text. Straight up and down an even or overexposed sky does the same, so there only a perfectly even image
    counts, and none that is black or white.

    Args:
        pixels: (H, W, 3).
        is_pole: Whether the view looks straight up or down.
    """
    sample = pixels[::4, ::4].reshape(-1, 3)
    median = np.median(sample, axis=0)
    if is_pole:
        is_burnt = bool((median >= 250).all() or (median <= 5).all())
        return not is_burnt and not (pixels != pixels[0, 0]).any()
    even = (np.abs(sample - median) <= 2).all(axis=1)
    return bool(even.mean() >= 0.95)
