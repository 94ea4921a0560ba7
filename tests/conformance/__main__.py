"""``python -m tests.conformance --url HOST:GRPC --model NAME``: exit code 1 if anything differs."""

import argparse
import sys

from tests.conformance.contract import CONTRACT, Server, failures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance")
    parser.add_argument("--url", required=True, metavar="HOST:GRPC")
    parser.add_argument("--model", required=True)
    arguments = parser.parse_args()
    failed = failures(Server(arguments.url, arguments.model))
    for expectation in CONTRACT:
        name = expectation.__name__
        line = f"FAIL {name}: {failed[name]}" if name in failed else f"ok   {name}"
        sys.stdout.write(line.replace("_", " ", name.count("_")) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
