"""The marker of each test, exactly one, by its file and its fixtures:

- ``unit``: no server, done at once. ``make test-fast`` runs these.
- ``slow``: no server either, but it converts models or works for seconds.
- ``triton``: a Triton of its own.
- ``stack``: several processes: a stack (``tidegate up``), gateways, Redis, nginx.

What is not listed here is ``stack`` in tests/e2e and ``unit`` elsewhere; a unit test that starts a
server fails (``refuse_servers``).
"""

import sys
from collections.abc import Callable
from pathlib import Path

MARKERS = ("unit", "slow", "triton", "stack")
# Fixtures that start a stack, or Redis.
STACKS = frozenset(("stack", "built", "echo", "echo_policy", "counted"))
SERVERS = frozenset(("tritonserver", "redis-server", "nginx"))
# Folders, files and tests, under tests/ and without the ending.
LISTED = {
    "stack": (
        "gateway/limits/test_overshoot",
        "gateway/limits/test_redis_store",
        "gateway/limits/test_redis_unhealthy",
        "gateway/response_cache/test_cache_in_redis",
        "gateway/upstream/test_shared_drains",
        "test_gpu_check",
    ),
    "triton": (
        "conformance/test_conformance",
        "e2e/test_convert_engine",
        "e2e/test_convert_folders",
        "e2e/test_convert_images",
        "e2e/test_convert_tensors",
        "e2e/test_convert_texts_of_tables",
        "e2e/test_convert_torch",
        "e2e/test_optimize",
        "e2e/test_prove",
        "e2e/test_publish",
        "e2e/test_publish_canary",
        "e2e/test_publish_config_profiles",
        "e2e/test_publish_killed",
        "e2e/test_publish_replicas",
        "e2e/test_publish_watch",
        "converters/test_adding_a_task",
        "gateway/upstream/test_http_upstream_on_triton",
        "serving/health/test_hangs",
        "serving/health/test_progress",
        "serving/lint/test_lint_corpus",
        "serving/triton/test_control",
        "serving/triton/test_installation::test_the_wheel_is_found_and_its_server_runs",
        "serving/triton/test_loading",
        "serving/tuning/test_tune",
    ),
    "slow": (
        "converters/optimize",
        "converters/precisions",
        "converters/proof",
        "converters/sources/test_image_processors",
        "converters/sources/test_lora",
        "converters/sources/test_no_traceback",
        "converters/sources/test_text_sources",
        "converters/tasks",
        "converters/tensorrt/test_onnx2trt",
        "converters/tensorrt/test_trt_names",
        "converters/tensorrt/test_trt_runner",
        "converters/test_code_key",
        "converters/test_conversion",
        "converters/torch_export",
        "ensembles/test_decode_image::test_the_largest_image_takes_a_known_amount",
        "ensembles/test_label_entities::test_any_labels_are_joined_as_transformers_joins_them",
        "ensembles/test_tokenize_pairs",
        "ensembles/test_tokenize_text",
        "gateway/access/test_open_streams::test_a_key_that_expires",
        "gateway/access/test_open_streams::test_a_token_that_expires",
        "gateway/api/grpc/test_grpc_wire::test_never_otherwise_than_protobuf",
        "gateway/api/grpc/test_unread_answers::test_one_that_is_read_slowly_is_not_cut",
        "gateway/api/openai/test_better_than_tritons_frontend",
        "gateway/api/openai/test_openai_tokens",
        "gateway/api/openai/test_output_parsers",
        "gateway/api/openai/test_parameters",
        "gateway/api/openai/test_responses",
        "gateway/api/test_sse::test_a_heartbeat_only_while_nothing_comes",
        "gateway/api/v2/test_large_bodies",
        "gateway/api/v2/test_v2_request::test_any_json_is_parsed_or_invalid",
        "gateway/audit/test_audit",
        "gateway/identity/test_keys::test_a_file_that_was_cut_off_grants_nothing_more",
        "gateway/identity/test_jwt::test_a_remembered_token_ends_when_it_expires",
        "gateway/limits/test_shared_slots",
        "gateway/policy/test_policy_cut",
        "gateway/test_metrics::test_workers_are_added_up",
        "gateway/test_background",
        "gateway/test_optional_parts",
        "gateway/test_request_log",
        "gateway/test_server_timing",
        "gateway/test_tracing",
        "gateway/upstream/test_catalogue_reader",
        "loadtests/test_command",
        "loadtests/signoff/test_arrivals::"
        "test_a_generator_that_was_held_up_counts_from_the_intended_time",
        "loadtests/signoff/test_exit_codes",
        "loadtests/signoff/test_procedure::test_the_knee_is_within_ten_percent_below_or_above_the_truth",
        "loadtests/signoff/test_report::test_its_page_fits_a_desk_and_a_phone_light_and_dark",
        "loadtests/signoff/test_scaling::test_the_interval_has_the_truth",
        "serving/backends/test_openvino_genai_engine",
        "serving/backends/test_openvino_genai_schema",
        "serving/backends/test_openvino_genai_supervisor",
        "serving/backends/test_torch_export_backend",
        "serving/triton/test_children::test_a_child_never_runs_grpcs_fork_handlers",
        "serving/tuning/test_closed_loop::test_the_lead_in_is_not_counted",
        "serving/tuning/test_config_search_samples::"
        "test_without_a_file_the_conversions_samples_are_used",
        "test_layers",
        "test_suite",
        "tidegate/test_canary_verdict",
        "tidegate/test_making",
        "tidegate/test_top",
        "tidegate/test_vllm_model",
        "training/test_entities",
        "training/test_frozen_layers",
        "training/test_generated_english",
        "training/test_knowledge_base",
        "training/test_multilingual_e5",
        "training/test_multilingual_embedding",
        "training/test_recipe",
        "training/test_reviews",
        "training/test_sentiment",
        "training/test_step_progress",
        "training/test_tagged_news",
        "training/test_topics",
    ),
}


def marker_of(nodeid: str, fixtures: frozenset[str] = frozenset()) -> str:
    """The marker of the test ``nodeid``, which uses these fixtures."""
    if fixtures & STACKS:
        return "stack"
    file, _, test = nodeid.removeprefix("tests/").partition("::")
    path = file.removesuffix(".py")
    names = {path, path.rpartition("/")[0], f"{path}::{test.partition('[')[0]}"}
    for marker, entries in LISTED.items():
        if names & set(entries):
            return marker
    return "stack" if path.startswith("e2e/") else "unit"


def has_unit_tests(file: Path, tests: Path) -> bool:
    """Whether a file is imported to run the unit tests: importing all takes half a minute."""
    path = file.relative_to(tests).with_suffix("").as_posix()
    return marker_of(f"tests/{path}.py") == "unit"


def refuse_servers(is_refused: Callable[[], bool]) -> None:
    """From now on this process starts no server while ``is_refused()``."""

    def audit(event: str, arguments: tuple) -> None:
        if event == "subprocess.Popen" and is_refused():
            words = [str(word).rsplit("/", 1)[-1] for word in arguments[1] or ()]
            if SERVERS & set(words):
                raise RuntimeError(f"a unit test starts {words}: list it in tests/marking.py")

    sys.addaudithook(audit)
