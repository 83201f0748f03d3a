"""The worker: takes an index from the list `work` in Redis, computes its Fibonacci number, and puts that into the hash `values`."""

import os
import signal
import sys
import time

import redis

# Process 1 of a container ends on SIGTERM only if it says so.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
store = redis.Redis(host=os.environ["REDIS_HOST"], decode_responses=True)


def fibonacci(index):
    a, b = 0, 1
    for _ in range(index):
        a, b = b, a + b
    return a


while True:
    try:
        found = store.blpop("work", timeout=5)
        if found:
            index = int(found[1])
            store.hset("values", index, fibonacci(index))
            print(f"{index}: computed")
    except redis.RedisError as error:
        print(f"Redis: {error}; trying again")
        time.sleep(1)
