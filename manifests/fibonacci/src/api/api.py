"""The API: notes each index in Postgres, asks the worker for its value through Redis, and tells what is known.

GET /seen -> [7, 12]    GET /values -> {"7": "13", "12": "being computed"}    POST /values {"index": 7}    GET /healthz
"""

import json
import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psycopg2
import redis

LARGEST = 90
store = redis.Redis(host=os.environ["REDIS_HOST"], decode_responses=True, socket_timeout=5)


def postgres(statement, *values):
    """One statement in a connection of its own: simple, and right again after the server was away."""
    connection = psycopg2.connect(
        host=os.environ["POSTGRES_HOST"], user="postgres", password=os.environ["POSTGRES_PASSWORD"], connect_timeout=5
    )
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute("CREATE TABLE IF NOT EXISTS seen (number INT PRIMARY KEY)")
            cursor.execute(statement, values)
            return [row[0] for row in cursor.fetchall()] if cursor.description else []
    finally:
        connection.close()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/seen":
            self.answer(200, postgres("SELECT number FROM seen ORDER BY number"))
        elif self.path == "/values":
            self.answer(200, store.hgetall("values"))
        elif self.path == "/healthz":
            store.ping()
            postgres("SELECT 1")
            self.answer(200, "ok")
        else:
            self.answer(404, {"error": "no such path"})

    def do_POST(self):
        if self.path != "/values":
            return self.answer(404, {"error": "no such path"})
        try:
            index = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))["index"]
        except (ValueError, KeyError, TypeError):
            return self.answer(400, {"error": 'send {"index": NUMBER}'})
        if not isinstance(index, int) or not 0 <= index <= LARGEST:
            return self.answer(422, {"error": f"the index must be a number from 0 to {LARGEST}"})
        postgres("INSERT INTO seen VALUES (%s) ON CONFLICT DO NOTHING", index)
        if store.hsetnx("values", index, "being computed"):
            store.rpush("work", index)
        self.answer(202, {"index": index})

    def answer(self, status, body):
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def handle_one_request(self):
        try:
            super().handle_one_request()
        except (redis.RedisError, psycopg2.Error) as error:
            self.answer(503, {"error": str(error).strip()})


# Process 1 of a container ends on SIGTERM only if it says so.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
ThreadingHTTPServer(("", 8080), Handler).serve_forever()
