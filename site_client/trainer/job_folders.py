"""Folders of jobs in the trainer's state folder: checkpoints, and the hash of the dataset that a job began with.

This file must not import torch: the service sweeps these folders.
"""

import shutil
from collections.abc import Collection
from pathlib import Path

from site_client.config import SiteSettings
from site_client.spool import Job


def job_folder(settings: SiteSettings, job: Job) -> Path:
    """Names the folder of a job. The worker makes it; `sweep_job_folders` removes it after the job."""
    return settings.folders.trainer / "jobs" / f"{job.run_id.hex()}-{job.round}"


def sweep_job_folders(settings: SiteSettings, jobs: Collection[Job]) -> None:
    """Removes every folder of a job that is not among `jobs`.

    A job whose worker still runs has to be among them, because that worker writes there.
    """
    # By name: a folder whose job the agent withdrew has no job to compare with.
    kept = {job_folder(settings, job).name for job in jobs}
    for folder in (settings.folders.trainer / "jobs").glob("*"):
        if folder.name not in kept:
            shutil.rmtree(folder)
