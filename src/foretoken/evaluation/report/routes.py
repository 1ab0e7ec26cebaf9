"""Which of several ways were taken, beside those that the data show."""

import numpy as np

from foretoken.evaluation import plots
from foretoken.evaluation.report.record import Record
from foretoken.evaluation.report.words import count, figure, section


def draw(run: Record) -> str:
    """The modes of behaviour in the last evaluation, where the environment tells them apart."""
    last = run.evaluations[-1].records if run.evaluations else ()
    records = [record for record in last if record.route is not None]
    if not records:
        return ""
    route, arrived = np.array([(record.route, record.success is True) for record in records], int).T
    shown = {int(one): times for one, times in (run.info.get("data_routes") or {}).items()}
    found = range(min(0, route.min(), *shown), max(0, route.max(), *shown) + 1)
    shares = np.array([[(route == one).mean(), ((route == one) * arrived).mean()] for one in found])
    labels = ["none" if one < 0 else str(one) for one in found]
    told = ", ".join(f"{label} {100 * share:.0f}\u00a0%" for label, share in zip(labels, shares[:, 0], strict=True))
    caption = f"<strong>Routes</strong> of the last evaluation's {count(len(records), 'episode')}: {told}."
    demonstrated = np.array([shown.get(one, 0) for one in found]) / max(1, sum(shown.values())) if shown else None
    if demonstrated is not None:
        apart = 0.5 * float(np.abs(shares[:, 0] - demonstrated).sum())
        caption += (
            f" <strong>{100 * apart:.0f}\u00a0%</strong> of the episodes would have to go another way to be spread as the data's "
            f"{count(sum(shown.values()), 'episode')} are (total variation)."
        )
    return section("Routes taken", figure(plots.routes(labels, shares[:, 0], shares[:, 1], demonstrated), caption))
