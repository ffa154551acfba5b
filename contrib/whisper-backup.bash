# Completion of whisper-backup in bash.  Made by contrib/generate.py; source it, or install it as
# /usr/share/bash-completion/completions/whisper-backup

_whisper_backup() {
    local word=$2 before=$3 place=0 command= index names
    [[ $word == = ]] && word=
    [[ $before == = ]] && before=${COMP_WORDS[COMP_CWORD - 2]}
    COMPREPLY=()
    case $before in
        --statefile|--lockfile|--logfile|--stampfile|--prometheus|--config) mapfile -t COMPREPLY < <(compgen -f -- "$word"); compopt -o filenames 2>/dev/null; return ;;
        -p|--prefix|-b|--bucket) mapfile -t COMPREPLY < <(compgen -d -- "$word"); compopt -o filenames 2>/dev/null; return ;;
        -a|--algorithm) mapfile -t COMPREPLY < <(compgen -W 'gz sz zst' -- "$word"); return ;;
        -p|--prefix|-b|--bucket|--storage-path|-m|--metrics|--exclude|-c|--date|--from|--until|--sample|--lag|-r|--retention|--keep-daily|--keep-weekly|--keep-monthly|-x|--purge|--keep-increments|-a|--algorithm|-f|--processes|--threads|--bwlimit|--max-file-size|--statefile|--splay|--lockfile|--locktimeout|--logfile|--stampfile|--carbon|--carbon-prefix|--carbon-node|--prometheus|--config) return ;;
    esac
    for ((index = 1; index < COMP_CWORD; index++)); do
        case ${COMP_WORDS[index]} in
            -p|--prefix|-b|--bucket|--storage-path|-m|--metrics|--exclude|-c|--date|--from|--until|--sample|--lag|-r|--retention|--keep-daily|--keep-weekly|--keep-monthly|-x|--purge|--keep-increments|-a|--algorithm|-f|--processes|--threads|--bwlimit|--max-file-size|--statefile|--splay|--lockfile|--locktimeout|--logfile|--stampfile|--carbon|--carbon-prefix|--carbon-node|--prometheus|--config) [[ ${COMP_WORDS[index + 1]} == = ]] && ((index++)); ((index++)) ;;
            -*) ;;
            *) ((place++)) || command=${COMP_WORDS[index]} ;;
        esac
    done
    if [[ $word == -* ]]; then
        case $command in
            backup) names='-p --prefix -b --bucket --storage-path --new-store -m --metrics --exclude -n --noop --dry-run -r --retention --keep-daily --keep-weekly --keep-monthly -x --purge --keep-increments --purge-anyway --no-delete -a --algorithm -f --processes --threads --bwlimit --nice --max-file-size --statefile --nostate --splay --lockfile --locktimeout --nolock -q --quiet -d --debug --logfile --nolog --syslog --stampfile --nostamp --json --carbon --carbon-prefix --carbon-node --prometheus --config -h --help --version' ;;
            increment) names='-p --prefix -b --bucket --storage-path --exclude -n --noop --dry-run --lag --no-delete -f --processes --threads --nice --statefile --nostate --splay --lockfile --locktimeout --nolock -q --quiet -d --debug --logfile --nolog --syslog --stampfile --nostamp --json --carbon --carbon-prefix --carbon-node --prometheus --config -h --help --version' ;;
            restore) names='-p --prefix -b --bucket --storage-path -m --metrics --exclude -c --date -n --noop --dry-run --from --until --no-increments --overwrite -f --processes --threads --max-file-size --lockfile --locktimeout --nolock -q --quiet -d --debug --logfile --nolog --syslog --stampfile --nostamp --json --carbon --carbon-prefix --carbon-node --prometheus --config -h --help --version' ;;
            purge) names='-p --prefix -b --bucket --storage-path -m --metrics --exclude -n --noop --dry-run -x --purge --purge-anyway -f --processes --threads --splay --lockfile --locktimeout --nolock -q --quiet -d --debug --logfile --nolog --syslog --stampfile --nostamp --json --carbon --carbon-prefix --carbon-node --prometheus --config -h --help --version' ;;
            prune) names='-b --bucket --storage-path -m --metrics --exclude -n --noop --dry-run -r --retention --keep-daily --keep-weekly --keep-monthly -x --purge --keep-increments --purge-anyway --protected-ok -f --processes --threads --splay --lockfile --locktimeout --nolock -q --quiet -d --debug --logfile --nolog --syslog --stampfile --nostamp --json --carbon --carbon-prefix --carbon-node --prometheus --config -h --help --version' ;;
            list) names='-b --bucket --storage-path -m --metrics --exclude -c --date -n --noop --dry-run --runs --debris --summary -q --quiet -d --debug --logfile --nolog --syslog --json --config -h --help --version' ;;
            verify) names='-p --prefix -b --bucket --storage-path -m --metrics --exclude -c --date -n --noop --dry-run --no-increments --all --sample --tree -f --processes --threads --bwlimit --nice --max-file-size -q --quiet -d --debug --logfile --nolog --syslog --json --carbon --carbon-prefix --carbon-node --prometheus --config -h --help --version' ;;
            doctor) names='-p --prefix -b --bucket --storage-path --exclude -n --noop --dry-run --no-delete --statefile --nostate -q --quiet -d --debug --logfile --nolog --syslog --stampfile --nostamp --json --config -h --help --version' ;;
            *) names='-p --prefix -b --bucket --storage-path --new-store -m --metrics --exclude -c --date -n --noop --dry-run --from --until --no-increments --overwrite --all --sample --tree --lag --runs --debris --summary -r --retention --keep-daily --keep-weekly --keep-monthly -x --purge --keep-increments --purge-anyway --no-delete --protected-ok -a --algorithm -f --processes --threads --bwlimit --nice --max-file-size --statefile --nostate --splay --lockfile --locktimeout --nolock -q --quiet -d --debug --logfile --nolog --syslog --stampfile --nostamp --json --carbon --carbon-prefix --carbon-node --prometheus --config -h --help --version' ;;
        esac
        mapfile -t COMPREPLY < <(compgen -W "$names" -- "$word")
        return
    fi
    case $place in
        0) mapfile -t COMPREPLY < <(compgen -W 'backup increment restore purge prune list verify doctor help' -- "$word") ;;
        1)
            [[ $command == help ]] && names='backup increment restore purge prune list verify doctor design faq format increments limits migrating monitoring operations options reliability security sizing stores' || names='disk gcs noop s3 swift'
            mapfile -t COMPREPLY < <(compgen -W "$names" -- "$word")
            ;;
    esac
}
complete -F _whisper_backup whisper-backup
