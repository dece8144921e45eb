"""Requantises a llama GGUF to Q8_0, with the same tensor names, row layout, tokenizer and chat template.

    python requant_q8_0.py smollm2.Q4_1.gguf smollm2.Q8_0.gguf      (gguf 0.19.0, numpy 2.4.6)

F32 tensors (the norms) and tensors that are Q8_0 already are copied; only general.file_type changes (to 7).
"""

import sys

import gguf
import numpy as np
from gguf.quants import dequantize, quantize

Q8_0, F32 = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.F32


def main():
    reader = gguf.GGUFReader(sys.argv[1])
    writer = gguf.GGUFWriter(sys.argv[2], reader.get_field("general.architecture").contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        value = 7 if field.name == "general.file_type" else field.contents()
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, value, kind, sub_type=inner)
    for tensor in reader.tensors:
        data, kind = np.array(tensor.data), tensor.tensor_type
        if kind not in (F32, Q8_0):
            data, kind = quantize(dequantize(data, kind).astype(np.float32), Q8_0), Q8_0
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
