"""Published layouts in and out: import to shards or linked tables, export to what published code expects."""

from __future__ import annotations

from cvgl_data.layouts.checks import LabelCheck
from cvgl_data.layouts.exporting import LAYOUTS, export_layout
from cvgl_data.layouts.importing import Imported, import_layout
from cvgl_data.layouts.target import Exported

__all__ = ["LAYOUTS", "Exported", "Imported", "LabelCheck", "export_layout", "import_layout"]
