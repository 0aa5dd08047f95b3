"""A rule whose output is a directory."""

def _tree_impl(ctx):
    out = ctx.actions.declare_directory(ctx.label.name + ".d")
    ctx.actions.run_shell(
        outputs = [out],
        arguments = [out.path, str(ctx.attr.directories)],
        command = """
            for i in $(seq 1 $2); do mkdir -p $1/sub$i/deep; echo file $i > $1/sub$i/deep/file.txt; done
            printf '#!/bin/sh\\nexit 0\\n' > $1/run.sh
            chmod +x $1/run.sh
            : > $1/empty
        """,
    )
    return [DefaultInfo(files = depset([out]), runfiles = ctx.runfiles([out]))]

tree = rule(
    implementation = _tree_impl,
    attrs = {"directories": attr.int()},
)
