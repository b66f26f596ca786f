"""Writes planned jobs for a platform: one format a file, a plan of jobs in, texts out."""

from .base import JOB_EXPORTERS, JobExporter, job_exporter_text, read_job_exporter

__all__ = ["JOB_EXPORTERS", "JobExporter", "job_exporter_text", "read_job_exporter"]
