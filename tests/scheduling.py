"""Which pytest worker runs which file, and when: where the seconds of ``make test`` are saved.

A worker runs whole files. What is expensive to set up is shared here:

- ``stack`` and ``built`` (``tests/conftest.py``): the stack that serves every pipeline of ours,
  each converted once. Files that use them are named in ``TOGETHER``; they run in a row in one
  worker, and the stack is stopped after the last.
- ``echo`` (``tests/conftest.py``): a stack that needs no conversion, with the echoing language
  model; for tests of the gateway.
- ``server`` fixtures of one file: a Triton of its own, for tests that publish into it or break it.
- ``Pair`` (``tests/e2e/pair.py``): two Tritons of one file, and gateways in front of them. They and
  those of ``tests/e2e/grpc_models.py`` and ``tests/serving/small_server.py`` serve Python models
  with complete configs, and are told so (``auto_complete=False``): each model loads in a third of
  the time. ``tidegate up`` is not, so a stack takes ten seconds to start: share one in a file.
- ``tests/command_line.py`` runs a verb in the worker's process, and ``tests/forked_references.py``
  forks the originals of its conversions: neither imports torch again.

The files of ``SECONDS`` start first, the longest before the others, so that no worker is left alone
with a long one at the end.
"""

from xdist.scheduler.loadfile import LoadFileScheduling

TOGETHER = frozenset(
    f"tests/{path}.py"
    for path in (
        "e2e/test_bad_input",
        "e2e/test_chat_clients",
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
# How long a file takes, roughly (``tests.suite`` prints it): only the order counts. A file that is
# not listed takes less than ten seconds.
SECONDS = {
    f"tests/{path}.py": seconds
    for path, seconds in {
        "e2e/test_convert_torch": 180,
        "e2e/test_hung_gateway": 120,
        "e2e/test_large_requests": 110,
        "e2e/test_tutorial": 110,
        "serving/lint/test_lint_corpus": 110,
        "e2e/test_incidents": 170,
        "e2e/test_two_gateways": 100,
        "e2e/test_convert_folders": 100,
        "e2e/test_prove": 100,
        "e2e/test_customer_service": 100,
        "e2e/test_chat_bad_days": 90,
        "e2e/test_signoff": 90,
        "e2e/test_restart": 90,
        "e2e/test_convert_text_tasks": 90,
        "e2e/test_abandoned_streams": 70,
        "converters/tasks/test_served_image_proof": 70,
        "e2e/test_attacks": 70,
        "e2e/test_canary_gateway": 60,
        "e2e/test_fair_streams": 60,
        "e2e/test_lost_streams": 60,
        "e2e/test_shadow_command": 60,
        "e2e/test_replicas": 60,
        "e2e/test_up_replicas": 60,
        "e2e/test_convert_images": 60,
        "e2e/test_compose": 60,
        "e2e/test_onnxruntime_backend": 60,
        "e2e/test_publish_config_profiles": 60,
        "e2e/test_replicas_from_dns": 50,
        "e2e/test_fallback": 50,
        "converters/torch_export/test_torch_export": 50,
        "conformance/test_conformance": 50,
        "e2e/test_convert_tabular": 50,
        "e2e/test_operation": 50,
        "serving/health/test_progress": 50,
        "serving/triton/test_loading": 50,
        "converters/sources/test_no_traceback": 50,
        "e2e/test_convert_engine": 50,
        "e2e/test_response_cache": 40,
        "e2e/test_shadow": 40,
        "e2e/test_unread_unary": 40,
        "e2e/test_connections": 40,
        "e2e/test_one_place": 40,
        "e2e/test_publish_commands": 40,
        "e2e/test_publish_killed": 40,
        "e2e/test_tls": 40,
        "serving/tuning/test_tune": 40,
        "e2e/test_grpc_streams": 40,
        "e2e/test_convert_texts_of_tables": 40,
        "e2e/test_publish_replicas": 30,
        "e2e/test_publish_watch": 30,
        "e2e/test_convert_tensors": 30,
        "e2e/test_optimize": 30,
        "e2e/test_publish": 30,
        "e2e/test_shared_limits": 30,
        "gateway/upstream/test_http_upstream_on_triton": 30,
        "serving/health/test_hangs": 30,
        "converters/tasks/test_tensors": 30,
        "converters/tasks/test_image_proof": 30,
        "e2e/test_tokens_settled": 20,
        "e2e/test_nginx": 20,
        "e2e/test_grpc_strangers": 20,
        "e2e/test_publish_canary": 20,
        "e2e/test_grpc_api": 20,
        "converters/tasks/test_embedding_proof": 20,
        "converters/proof/test_exercised": 20,
        "converters/tasks/test_image_folder": 20,
        "converters/tasks/test_tabular_spread": 20,
        "converters/tasks/test_entities": 20,
        "converters/tasks/test_tabular_models": 20,
        "e2e/test_last_good_state": 20,
        "e2e/test_rights_end": 20,
        "e2e/test_up_config": 20,
        "gateway/api/v2/test_large_bodies": 20,
        "converters/tasks/test_tabular_texts": 20,
        "converters/proof/test_compared_layers": 20,
    }.items()
}


def file_of(nodeid: str) -> str:
    return nodeid.split("::", 1)[0]


def seconds_of(nodeid: str) -> float:
    """What the tests are sorted by, the largest first; all files in ``TOGETHER`` come first."""
    file = file_of(nodeid)
    return float("inf") if file in TOGETHER else SECONDS.get(file, 0)


class LongestFirst(LoadFileScheduling):
    """Each file goes to one worker, in the order of collection; all files in ``TOGETHER`` go to
    the same worker."""

    def _split_scope(self, nodeid: str) -> str:
        file = file_of(nodeid)
        return "the stack's" if file in TOGETHER else file
