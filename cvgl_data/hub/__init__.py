"""The Hub: publish a dataset, with its images where that is allowed, and make it again from what was published."""

from cvgl_data.hub.comparison import Row
from cvgl_data.hub.publishing import Pushed, push
from cvgl_data.hub.rehydration import Rehydrated, pull
from cvgl_data.hub.staging import File, stage

__all__ = ["File", "Pushed", "Rehydrated", "Row", "pull", "push", "stage"]
