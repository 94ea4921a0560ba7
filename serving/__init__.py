"""Start, watch and heal a Triton server, and publish models into its repository."""

import os

# A child of ours only ever executes another program. With gRPC's fork support on (its default) gRPC
# starts its threads again in the child before that, and now and then aborts it (SIGABRT,
# "Epoll1Poller ... Bad file descriptor": 1 in 200 forks of a process with a channel on a busy
# machine, none in 1,760 without). gRPC reads this when it is imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
