#!/usr/bin/env python3
"""A collector that remembers, on OpenTelemetry's own messages and grpcio: OTLP over gRPC and over HTTP.

Prints its port for HTTP, where POST /v1/traces takes spans, GET /grpc says the port for gRPC, and GET /spans what it has.
Ends when its standard input does, or by a signal.
"""

import json
import sys
import threading
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

spans = []


def value(any_value):
    return getattr(any_value, any_value.WhichOneof("value"))


def pairs(attributes):
    return {attribute.key: value(attribute.value) for attribute in attributes}


def remember(request, how):
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                told = MessageToDict(span)
                told.update(
                    traceId=span.trace_id.hex(),
                    spanId=span.span_id.hex(),
                    parentSpanId=span.parent_span_id.hex(),
                    attributes=pairs(span.attributes),
                    resource=pairs(resource.resource.attributes),
                    scope=scope.scope.name,
                    how=how,
                )
                spans.append(told)


class Service(trace_service_pb2_grpc.TraceServiceServicer):
    def Export(self, request, context):
        remember(request, "grpc")
        return trace_service_pb2.ExportTraceServiceResponse()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def say(self, body, kind):
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        told = {"/spans": spans, "/grpc": grpc_port}.get(self.path)
        self.say(json.dumps(told).encode(), "application/json")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        assert self.path == "/v1/traces" and self.headers["content-type"] == "application/x-protobuf"
        request = trace_service_pb2.ExportTraceServiceRequest()
        request.ParseFromString(body)
        remember(request, "http")
        self.say(trace_service_pb2.ExportTraceServiceResponse().SerializeToString(), "application/x-protobuf")

    def log_message(self, *arguments):
        pass


calls = grpc.server(futures.ThreadPoolExecutor(4))
trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Service(), calls)
grpc_port = calls.add_insecure_port("127.0.0.1:0")
calls.start()
server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_address[1], flush=True)
sys.stdin.read()
