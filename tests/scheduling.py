"""The files that use the shared stack (the fixture ``stack``) go to one pytest worker, in a row: it
is started once, and stopped after its last user instead of running beside all other tests."""

from xdist.scheduler.loadfile import LoadFileScheduling

TOGETHER = frozenset(
    f"tests/{path}.py"
    for path in (
        "e2e/test_bad_input",
        "e2e/test_commands",
        "e2e/test_convert",
        "e2e/test_documentation",
        "e2e/test_faults",
        "e2e/test_floods",
        "e2e/test_image_classification",
        "e2e/test_lint",
        "e2e/test_loadtests",
        "e2e/test_openai_chat",
        "e2e/test_own_models",
        "e2e/test_policy",
        "e2e/test_schemathesis",
        "e2e/test_stock_clients",
        "e2e/test_up",
        "test_gpu_check",
    )
)


def file_of(nodeid: str) -> str:
    return nodeid.split("::", 1)[0]


class StackInARow(LoadFileScheduling):
    """Each file goes to one worker, and all files in ``TOGETHER`` go to the same one."""

    def _split_scope(self, nodeid: str) -> str:
        file = file_of(nodeid)
        return "the stack's" if file in TOGETHER else file
