"""Training: one readable loop for every system.

Everything random in a step is drawn from (seed, step), so a run that was stopped goes on from its last checkpoint and
ends with the very weights of an uninterrupted one (bit for bit on a CPU with the same number of threads).

`train` is in ``run``, the loop in ``loop``, the gradients of large batches and of several processes in ``gradients``.
"""

from cvgl_models.training.embedding import autocast, embed_views
from cvgl_models.training.optimizer import learning_rate
from cvgl_models.training.run import fingerprint, train

__all__ = ["autocast", "embed_views", "fingerprint", "learning_rate", "train"]
