"""Panoramax's pictures as a search finds them: STAC items, checked to be panoramas, with their pose and licence.

Source:
    Panoramax API (STAC with the view and perspective-imagery extensions), https://api.panoramax.xyz
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import Field

from cvgl_data.errors import FetchError, NoPanorama
from cvgl_data.http import answers
from cvgl_data.types import Outcome, Panorama

logger = logging.getLogger(__name__)

NAME = "panoramax"


class _Camera(answers.Model):
    field_of_view: answers.Number | None = None
    sensor_array_dimensions: tuple[answers.Number, answers.Number] | None = None


class _Properties(answers.Model):
    status: answers.Text | None = Field(None, alias="geovisio:status")
    datetime: answers.Text | None = None
    licence: answers.Text | None = Field(None, alias="license")
    producer: answers.Text | None = Field(None, alias="geovisio:producer")
    azimuth: answers.Number | None = Field(None, alias="view:azimuth")
    pitch: answers.Number | None = Field(None, alias="pers:pitch")
    roll: answers.Number | None = Field(None, alias="pers:roll")
    camera: _Camera | None = Field(None, alias="pers:interior_orientation")


class _Provider(answers.Model):
    name: answers.Text = ""
    roles: list[answers.Text] | None = None


class _Asset(answers.Model):
    href: answers.Text


class _Assets(answers.Model):
    sd: _Asset | None = None
    hd: _Asset | None = None


class _Feature(answers.Model):
    """What is known of one picture, a STAC item."""

    id: answers.Text
    collection: answers.Text | None = None
    geometry: answers.Point
    properties: _Properties
    assets: _Assets | None = None
    providers: list[_Provider] | None = None


class _Found(answers.Model):
    features: list[Any]


class Item:
    """One STAC item that was found to be a 360-degree picture which is ready.

    Args:
        feature: As answered.

    Raises:
        NoPanorama: If the picture was hidden or deleted.
        FetchError: ``server_error`` if it is still being processed, ``wrong_type`` if it is no panorama,
            ``decode_error`` if a value makes no sense.
    """

    def __init__(self, feature: _Feature) -> None:
        self._feature = feature
        properties, self._id = feature.properties, feature.id
        self._check_status(properties.status)
        self._check_projection(properties.camera)
        self._pitch_deg = _signed_deg(properties.pitch)
        if self._pitch_deg is not None and abs(self._pitch_deg) > 90.0:
            raise self._error(f"its pitch is {properties.pitch:g} degrees", Outcome.DECODE_ERROR)
        self._captured = captured_of(properties.datetime or "", self._id)

    def href(self, quality: str) -> str:
        """Return the address of the picture, empty if the item does not tell it.

        Raises:
            FetchError: ``decode_error`` if it is no address.
        """
        asset: _Asset | None = getattr(self._feature.assets, quality, None)
        if asset is None:
            return ""
        if not answers.is_address(asset.href):
            raise self._error(f"the address of its {quality} image is '{asset.href[:60]}'", Outcome.DECODE_ERROR)
        return asset.href

    def panorama(self, image: bytes, **validators: Any) -> Panorama:
        """Return the item with its image; ``validators`` are those of the image's `Response`."""
        lon, lat = self._feature.geometry.coordinates[:2]
        properties, providers = self._feature.properties, self._feature.providers or []
        producers = [each.name for each in providers if "producer" in (each.roles or ())]
        names = [properties.producer or "", *producers, *(each.name for each in providers)]
        return Panorama(
            pano_id=self._id,
            image=image,
            lon=lon,
            lat=lat,
            heading_deg=None if properties.azimuth is None else properties.azimuth % 360.0 % 360.0,
            pitch_deg=self._pitch_deg,
            roll_deg=_signed_deg(properties.roll),
            captured=self._captured,
            licence=properties.licence or "",
            creator=next((name for name in names if name), ""),
            sequence=self._feature.collection or "",
            pose_source="" if properties.azimuth is None else "view:azimuth",
            **validators,
        )

    def _check_status(self, status: str | None) -> None:
        if status in (None, "", "ready"):  # newer servers say nothing if all is well
            return
        if status in ("preparing", "waiting-for-process"):
            raise self._error(f"it is not ready yet ({status})", Outcome.SERVER_ERROR)
        raise NoPanorama(f"picture {self._id} is not available ({status[:40]})", source=NAME, item=self._id)

    def _check_projection(self, camera: _Camera | None) -> None:
        """Refuse flat pictures; what the item leaves open, the size of the image will show."""
        if camera is None:
            return
        if camera.field_of_view is not None:
            if camera.field_of_view != 360.0:
                text = f"it is no panorama: its field of view is {camera.field_of_view:g} degrees"
                raise self._error(text, Outcome.WRONG_TYPE)
        elif camera.sensor_array_dimensions is not None:
            width, height = camera.sensor_array_dimensions
            if width != 2 * height:
                raise self._error(f"it is no panorama: it has {width:g}x{height:g} pixels", Outcome.WRONG_TYPE)
            logger.warning("picture %s has no field of view; its shape of 2:1 makes it a panorama", self._id)

    def _error(self, what: str, outcome: Outcome) -> FetchError:
        return FetchError(f"picture {self._id}: {what}", source=NAME, item=self._id, outcome=outcome)


def split(answer: Any, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the answer of a search for several ids as those of searches for each; ids it leaves out are missing.

    Raises:
        FetchError: ``decode_error`` if it holds no features.
    """
    found: dict[str, dict[str, Any]] = {}
    for feature in answers.check(_Found, answer, source=NAME, item=ids[0]).features:
        own = feature.get("id") if isinstance(feature, dict) else None
        if isinstance(own, str) and own in ids:
            found.setdefault(own, {"features": [feature]})
    return found


def item_of(answer: Any, pano_id: str) -> Item:
    """Return the item that a search for one id found.

    Args:
        answer: JSON of ``/search?ids=...``.
        pano_id: The id.

    Raises:
        NoPanorama: If it found nothing.
        FetchError: ``decode_error`` for anything but the picture asked for; and as for `Item`.
    """
    found = answers.check(_Found, answer, source=NAME, item=pano_id).features
    if not found:
        raise NoPanorama(f"there is no picture {pano_id}", source=NAME, item=pano_id)
    own = [feature for feature in found if isinstance(feature, dict) and feature.get("id") == pano_id]
    if not own:
        text = f"unexpected answer: it is about {len(found)} other pictures, not {pano_id}"
        raise FetchError(text, source=NAME, item=pano_id, outcome=Outcome.DECODE_ERROR)
    return Item(answers.check(_Feature, own[0], source=NAME, item=pano_id))


def captured_of(text: str, item: str) -> str:
    """Return a date and time as ISO 8601 in UTC with a final Z; none stays empty, and without a zone it is UTC already.

    Raises:
        FetchError: ``decode_error`` if it is none.
    """
    if not text:
        return ""
    try:
        moment = datetime.fromisoformat(text)
        moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        text = f"unexpected answer: '{text[:40]}' is no date"
        raise FetchError(text, source=NAME, item=item, outcome=Outcome.DECODE_ERROR) from None
    return moment.isoformat().replace("+00:00", "Z")


def _signed_deg(angle: float | None) -> float | None:
    """Return an angle between -180 and 180, unchanged if it lies there."""
    return angle if angle is None or abs(angle) <= 180.0 else (angle + 180.0) % 360.0 - 180.0
