from typing import TypedDict

class BuildInfo(TypedDict):
    compiler: str
    cpp_standard: int
    architecture: str
    instruction_sets: list[str]

def philox_words(seed: int, index_ptr: int, n: int, blocks: int, stream: int, out_ptr: int) -> None: ...
def build_info() -> BuildInfo: ...
