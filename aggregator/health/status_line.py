"""The service in one line, for `systemctl status`: hospitals, run, round."""

from sqlalchemy.exc import SQLAlchemyError

from aggregator.context import AppContext
from aggregator.store import round_rows, run_rows, site_rows


def status_line(app: AppContext) -> str:
    """Return the line, as the rows are now; the reason in its place while the database cannot be read."""
    try:
        with app.store.read() as session:
            hospitals = f"{site_rows.count_active(session)} hospitals"
            run = run_rows.active(session)
            row = None if run is None else round_rows.newest(session, run.run_id)
    except SQLAlchemyError as error:
        # The statement and its values stay out of the line.
        return f"the database does not answer ({type(error).__name__}); rounds wait, see the log"
    if run is None:
        return f"{hospitals}, no run"
    why = f" ({run.reason})" if run.reason else ""
    phase = "" if row is None else f", round {row.number} {row.state}"
    return f"{hospitals}, run {run.name} {run.state}{why}{phase}"
