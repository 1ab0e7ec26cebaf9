"""The doctor: looks through a store for what commonly spoils training, and says what to do about it.

One pass over the data in chunks gathers a `Survey` (counts and a few lists); each check is then a small function of it.
Nothing is changed. A finding is a hint from fixed rules of thumb, given here as constants; where a rule does not fit an
environment, the message says what was seen, so that it can be judged.
"""

from foretoken.data.doctor.checks import examine
from foretoken.data.doctor.survey import Survey
from foretoken.data.findings import Finding

__all__ = ["Finding", "Survey", "examine"]
