"""`diffusion-peft export`: write an adapter of a pipeline's denoiser in another program's format."""

from peft_runs.command_export import parser_of
from peft_runs.families import Family


def run(family: Family, words: list[str]) -> None:
    """Write it, or refuse with the reason.

    Raises:
        UsageError: an unknown format, path or name.
        AdapterError, DataError, RunError: what is named is damaged, does not belong together, or has no exact form.
    """
    from peft_runs.errors import unknown
    from peft_runs.exporting_denoiser import FORMATS, export_denoiser
    from peft_runs.run_folder import adapter_in

    adapter = "the adapter's folder, a run's, or a LoRA, LoHa or LoKr file of any program"
    parser = parser_of(family, FORMATS, adapter, "folder (peft, merged) or safetensors file")
    parser.add_argument("--pipeline", help="embedded name, folder, or name of the hub (default: the adapter's base)")
    parser.add_argument("--part", help="of a file that is for text encoders as well, take this part: unet, transformer")
    options = parser.parse_args(words)
    if options.to not in FORMATS:
        raise unknown("format", options.to, FORMATS)
    merged = export_denoiser(adapter_in(options.adapter), options.to, options.out, options.pipeline, options.part)
    if merged is not None:
        from peft_runs.command_merge_pipeline import tell

        tell(family, options.out, merged, "float32")
        return
    print(f"wrote {options.out}: {FORMATS[options.to]}")
