include: "workflow/Snakefile"


# What an included file aims at is not what a call without a target makes: say it again here.
rule default:
    default_target: True
    input:
        rules.all.input,
