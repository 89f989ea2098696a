# Runs exported models on the CPU, with onnxruntime or OpenVINO; PyTorch is not inside.
#
#   docker build -t u2export .
#   docker run --rm --user "$(id -u)" -v "$PWD:/data" u2export run model.onnx photo.jpg
#
# A file from a stranger: add --network none --read-only --memory 2g \
#   --tmpfs /tmp --tmpfs /var/cache/u2export
FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY weights/u2netp-demo.safetensors weights/u2netp-demo.json weights/
COPY u2export u2export
RUN python -m venv /opt/u2export && \
    /opt/u2export/bin/python -m pip install --no-cache-dir -c constraints.txt '.[onnxruntime,openvino]'

FROM python:3.12-slim
COPY --from=build /opt/u2export /opt/u2export
# compiled models and the like lie in the cache; any user may write there
RUN useradd --uid 1000 --create-home u2export && \
    install --directory --mode 1777 /var/cache/u2export
ENV PATH="/opt/u2export/bin:$PATH" U2EXPORT_CACHE=/var/cache/u2export
USER 1000
WORKDIR /data
ENTRYPOINT ["u2export"]
CMD ["--help"]
