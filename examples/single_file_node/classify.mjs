// Classifies images with a network that dfs-deploy export --single-file wrote, and shows the path that each took.
//
//     node classify.mjs [--json] MODEL.onnx IMAGE...
//
// An image is a file of height x width x channels bytes, row by row, or a .json file with an array of them.

import { readFile } from "node:fs/promises";
import process from "node:process";
import ort from "onnxruntime-node";

/** Yields [field number, value] of a protocol buffer message; a value is bytes, or undefined where it is a number. */
function* fields(bytes) {
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let factor = 1; ; factor *= 128) {
      const byte = bytes[at++];
      value += (byte & 127) * factor;
      if (!(byte > 127)) return value; // undefined after the end
    }
  };
  while (at < bytes.length) {
    const tag = varint();
    const number = Math.floor(tag / 8);
    switch (tag % 8) {
      case 0:
        varint();
        yield [number, undefined];
        break;
      case 1:
        at += 8;
        yield [number, undefined];
        break;
      case 2: {
        const length = varint();
        yield [number, bytes.subarray(at, at + length)];
        at += length;
        break;
      }
      case 5:
        at += 4;
        yield [number, undefined];
        break;
      default:
        throw new Error("this is no ONNX file");
    }
  }
}

/** The model's metadata, which the JavaScript API does not give: field 14 of ModelProto in onnx.proto. */
function readMetadata(model) {
  const metadata = {};
  for (const [number, entry] of fields(model)) {
    if (number !== 14) continue;
    const [key, value] = [...fields(entry)].map(([, text]) => text.toString("utf8"));
    metadata[key] = JSON.parse(value);
  }
  return metadata;
}

async function readPixels(file) {
  return file.endsWith(".json") ? JSON.parse(await readFile(file, "utf8")).flat(Infinity) : readFile(file);
}

/** Height x width x channels bytes to (1, C, H, W) float32: (pixel / 255 - mean) / std, rounded as in Python. */
function normalize(pixels, { input_shape: [channels, height, width], mean, std }) {
  const area = height * width;
  if (pixels.length !== channels * area) {
    throw new Error(`${pixels.length} bytes, expected ${height} x ${width} x ${channels}`);
  }
  const values = new Float32Array(channels * area);
  for (let c = 0; c < channels; c++) {
    const [m, s] = [Math.fround(mean[c]), Math.fround(std[c])];
    for (let i = 0; i < area; i++) {
      values[c * area + i] = Math.fround(Math.fround(pixels[i * channels + c] / 255) - m) / s;
    }
  }
  return new ort.Tensor("float32", values, [1, channels, height, width]);
}

async function main(words) {
  const asJson = words.includes("--json");
  const [modelFile, ...images] = words.filter((word) => word !== "--json");
  if (images.length === 0) throw new Error("expected: node classify.mjs [--json] MODEL.onnx IMAGE...");

  const model = await readFile(modelFile);
  const metadata = readMetadata(model);
  if (!metadata.input_shape) throw new Error(`${modelFile} was not written by dfs-deploy export --single-file`);
  const session = await ort.InferenceSession.create(model, { intraOpNumThreads: 1, interOpNumThreads: 1 });

  for (const file of images) {
    let input;
    try {
      input = normalize(await readPixels(file), metadata);
    } catch (error) {
      throw new Error(`${file}: ${error.message}`);
    }
    const { logits, path } = await session.run({ images: input });
    const scores = Array.from(logits.data);
    const best = scores.indexOf(Math.max(...scores));
    const taken = Array.from(path.data, Number);
    const name = metadata.class_names[best] ?? `class ${best}`;
    if (asJson) {
      console.log(JSON.stringify({ file, class: best, name, path: taken, logits: scores }));
    } else {
      console.log(`${file}: ${name}, path ${taken.map((option) => metadata.options[option].name).join(" ")}`);
    }
  }
}

main(process.argv.slice(2)).catch((error) => {
  console.error(`error: ${error.message}`);
  process.exitCode = 2;
});
