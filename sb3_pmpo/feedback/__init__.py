"""Labels from people and programs while a policy learns, and the page that asks for them."""

from sb3_pmpo.feedback.buffer import FeedbackBuffer
from sb3_pmpo.feedback.credit import fading, last, uniform
from sb3_pmpo.feedback.wrapper import FeedbackWrapper

__all__ = ["FeedbackBuffer", "FeedbackWrapper", "fading", "last", "uniform"]
