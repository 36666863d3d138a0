"""Run the workflow service: ``python -m tocsin.workflow``."""

from tocsin.bus import run_service
from tocsin.workflow.service import WorkflowService
from tocsin.workflow.settings import WorkflowSettings

if __name__ == "__main__":
    run_service(WorkflowService, WorkflowSettings)
