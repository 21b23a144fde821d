"""The light server: the same model, requests and answers as with TorchServe, on uvicorn, Starlette and grpc.aio."""
