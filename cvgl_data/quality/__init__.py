"""Quality of a dataset's images: measures, one flag per check, and whether an image stays.

Nothing is dropped here: the tables say what was found, with the measures that each flag rests on, and the recipe says
which flags take an image out.
"""

from cvgl_data.quality.summary import CheckCount, count_failures
from cvgl_data.quality.table import assess
from cvgl_data.recipe.quality import CHECKS

__all__ = ["CHECKS", "CheckCount", "assess", "count_failures"]
