"""What Locust loads: our options and listeners, and the users among which it chooses.

``python -m loadtests`` starts Locust with this file. It also works on its own:

    locust -f loadtests/locustfile.py --host http://127.0.0.1:8080 RestUser TritonUser
"""

from loadtests.listeners import register
from loadtests.users import PipelineUser, RestUser, TritonUser

__all__ = ["PipelineUser", "RestUser", "TritonUser"]

register()
