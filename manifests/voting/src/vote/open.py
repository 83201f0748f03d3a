"""Opens the election: writes the options into Redis, once. A Job runs it to its end."""

import os
import sys

import redis

store = redis.Redis(host=os.environ["REDIS_PRIMARY"], decode_responses=True, socket_timeout=5)
for option in sys.argv[1:]:
    # An option that has votes keeps them, so that the Job may run twice.
    print(f"{option}: {'open' if store.hsetnx('votes', option, 0) else 'was open'}")
