# What each role may touch, by the kinds of services/runlore/commit/keys.py. tests/infra compares the two: it runs the
# pipeline, a seed and a sweep with exactly these rights, and tries names that look like kinds.

locals {
  # Kind → where its objects lie. In a policy '*' goes across '/', and a memory or a rollout may be called `marks`. So
  # the two hex digits that follow a real kind belong to the pattern, and what still looks like another is denied below.
  places = {
    rollouts   = "*/rollouts/??/*"
    records    = "*/records/??/*"
    marks      = "*/marks/??/*"
    memories   = "*/memories/??/*"
    manifests  = "*/manifests/??/*"
    packs      = "*/packs/??/*"
    claims     = "*/claims/??/*"
    snapshots  = "*/snapshots/??/*"
    blobs      = "*/blobs/??/*"
    workspaces = "*/workspaces/??/*"
    outcomes   = "*/outcomes/??/*"
    audit      = "*/audit/????-??/*"
    requests   = "*/requests/??/*"
    answers    = "*/answers/??/*"
    asks       = "*/asks/??/*"
    joins      = "*/joins/??/*"
    spend      = "*/spend/??/*"
    sides      = "*/sides/??/*"
    erasures   = "*/erasures/??/*"
    _dead      = "_dead/??/*"
    pauses     = "_operations/pauses/*"
    workers    = "_operations/workers/*"
    probes     = "_operations/probes/*"
    keys       = "_operations/keys/*"
    secrets    = "_operations/secrets/*"
    redaction  = "_operations/redaction/*"
    admin      = "_operations/admin/*"
    used       = "_operations/used/*"
    acts       = "_operations/acts/*"
    seeds      = "_operations/seeds/*"
    limits     = "_operations/limits/??/*"
    alerts     = "_operations/alerts/????-??/*"

    # Of `admin` the head alone, which says what may be spent: no entry of the log.
    organization = "_operations/admin/organization.json"
  }

  # Kinds with two names of somebody's choice in a row in their keys: a name like `marks` and one of two letters look
  # like another kind there. They are denied outright to whoever has no right to them; the eraser alone may delete them.
  ambiguous = ["records", "outcomes"]

  # Written with If-Match or If-None-Match, always.
  conditional = ["rollouts", "records", "marks", "memories", "workspaces", "outcomes", "audit", "pauses", "requests", "answers", "asks", "sides", "spend", "joins", "keys", "secrets", "admin", "redaction", "alerts", "acts", "seeds", "limits", "erasures"]

  roles = {
    # `runlore worker`, every stage. It deletes marks, asks and joins that were worked and its own status; probes are what `runlore doctor`
    # tries with the same rights. It goes by the limits of the organization, and tells of its spend alerts.
    worker = {
      read   = ["rollouts", "records", "marks", "memories", "manifests", "packs", "claims", "snapshots", "blobs", "workspaces", "outcomes", "answers", "asks", "spend", "joins", "pauses", "workers", "probes", "redaction", "organization", "alerts", "erasures"]
      write  = ["rollouts", "records", "marks", "memories", "manifests", "packs", "snapshots", "blobs", "workspaces", "outcomes", "answers", "asks", "spend", "joins", "_dead", "workers", "probes", "redaction", "alerts"]
      delete = ["marks", "asks", "joins", "workers", "probes"]
    }

    # `runlore serve`: seeds and search, why a line is there and where a run is; it takes in events and archives, and merges
    # a line's branches. It keeps this machine's index, and says how it is; it writes to the logs of acts and of seeds that it
    # hands out, and its right to `audit` is for the version before, which kept acts there. Its console shows what waits and dead letters; that
    # it ends keys there takes the right to write them, which it is not given here.
    serve = {
      read   = ["rollouts", "records", "marks", "memories", "sides", "manifests", "packs", "snapshots", "blobs", "workspaces", "outcomes", "requests", "asks", "joins", "spend", "_dead", "pauses", "workers", "keys", "secrets", "admin", "probes", "redaction", "acts", "limits", "erasures"]
      write  = ["claims", "requests", "asks", "secrets", "redaction", "audit", "snapshots", "blobs", "workspaces", "outcomes", "workers", "used", "acts", "seeds", "limits"]
      delete = ["workers"]
    }

    # The same where it also administers (docs/ADMIN.md): it makes and ends keys. A replica of its own, which only those who
    # administer reach, keeps that right away from the one that everybody asks.
    serve_admin = {
      read   = ["rollouts", "records", "marks", "memories", "sides", "manifests", "packs", "snapshots", "blobs", "workspaces", "outcomes", "requests", "asks", "joins", "spend", "_dead", "pauses", "workers", "keys", "secrets", "admin", "used", "probes", "redaction", "acts", "seeds", "audit", "limits", "erasures"]
      write  = ["claims", "requests", "asks", "secrets", "redaction", "audit", "snapshots", "blobs", "workspaces", "outcomes", "workers", "marks", "memories", "keys", "admin", "used", "acts", "seeds", "limits", "erasures"]
      delete = ["workers"]
    }

    # Whoever reads seeds without asking the service: reads what heads name, and no raw record.
    lookup = {
      read   = ["rollouts", "memories", "manifests", "packs", "snapshots", "blobs", "workspaces", "erasures"]
      write  = []
      delete = []
    }

    # `runlore index`: the same, and it says how it is.
    index = {
      read   = ["rollouts", "memories", "manifests", "packs", "snapshots", "blobs", "workspaces", "workers", "erasures"]
      write  = ["workers"]
      delete = ["workers"]
    }

    # `runlore sweep`: beside the eraser the only role that may delete what a head could name.
    sweeper = {
      read   = ["memories", "sides", "manifests", "packs", "snapshots", "blobs", "workspaces", "acts"]
      write  = ["acts"]
      delete = ["manifests", "packs", "snapshots", "blobs", "requests"]
    }

    # A person at the command line: revert, review, rebuild and promote, snapshot merge and tag, pause, keys, admin, dead, doctor,
    # verify.
    operator = {
      read   = ["rollouts", "records", "marks", "memories", "sides", "manifests", "packs", "claims", "snapshots", "blobs", "workspaces", "outcomes", "answers", "asks", "spend", "audit", "_dead", "pauses", "workers", "probes", "keys", "admin", "used", "redaction", "acts", "seeds", "limits", "erasures"]
      write  = ["marks", "asks", "memories", "sides", "manifests", "packs", "snapshots", "blobs", "workspaces", "outcomes", "answers", "audit", "pauses", "probes", "keys", "admin", "spend", "joins", "acts", "seeds"]
      delete = ["pauses", "probes"]
    }

    # `runlore rescan`: the only role beside the workers that may write records and summaries.
    rescanner = {
      read   = ["rollouts", "records", "memories", "manifests", "packs", "answers", "redaction", "acts"]
      write  = ["rollouts", "records", "marks", "answers", "acts", "redaction"]
      delete = []
    }

    # `runlore repair`: makes lost heads again. It deletes nothing, and the store refuses to it what is there already.
    repairer = {
      read   = ["rollouts", "records", "marks", "memories", "manifests", "packs", "snapshots", "blobs", "workspaces", "outcomes", "asks", "erasures", "acts"]
      write  = ["rollouts", "marks", "memories", "workspaces", "outcomes", "asks", "erasures", "acts"]
      delete = []
    }

    # `runlore forget` and `runlore upkeep`: the only role that may delete records, and the sweep's rights with it. What it
    # writes are heads that say what was erased, revisions without it, and stubs in place of those that were shown it.
    eraser = {
      read   = ["rollouts", "records", "marks", "memories", "sides", "manifests", "packs", "snapshots", "blobs", "workspaces", "outcomes", "answers", "asks", "joins", "erasures", "_dead", "admin", "acts"]
      write  = ["rollouts", "marks", "memories", "sides", "manifests", "packs", "workspaces", "outcomes", "erasures", "acts"]
      delete = ["records", "outcomes", "answers", "asks", "joins", "claims", "_dead", "manifests", "packs", "snapshots", "blobs", "requests"]
    }

    # `runlore emit`, `runlore source run` for every project: claims, and what no topic can take. It hides secrets with a
    # project's key once a worker has drawn one; until then it leaves that to the workers.
    source = {
      read   = ["redaction"]
      write  = ["claims", "_dead"]
      delete = []
    }
  }
}

data "aws_iam_policy_document" "role" {
  for_each = local.roles

  # For the whole bucket: without it S3 answers a missing key with 403, not 404, and a missing head is no fault. Who reads
  # no head needs no list of names.
  dynamic "statement" {
    for_each = length(setsubtract(each.value.read, ["redaction"])) > 0 ? [1] : []

    content {
      sid       = "List"
      actions   = ["s3:ListBucket"]
      resources = [aws_s3_bucket.store.arn]
    }
  }

  # A place that is read and written is named once: a policy may have 6,144 characters.
  dynamic "statement" {
    for_each = length(setintersection(each.value.read, each.value.write)) > 0 ? [1] : []

    content {
      sid       = "ReadWrite"
      actions   = ["s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload"]
      resources = [for place in setintersection(each.value.read, each.value.write) : "${aws_s3_bucket.store.arn}/${var.prefix}${local.places[place]}"]
    }
  }

  dynamic "statement" {
    for_each = length(setsubtract(each.value.read, each.value.write)) > 0 ? [1] : []

    content {
      sid       = "Read"
      actions   = ["s3:GetObject"]
      resources = [for place in setsubtract(each.value.read, each.value.write) : "${aws_s3_bucket.store.arn}/${var.prefix}${local.places[place]}"]
    }
  }

  dynamic "statement" {
    for_each = length(setsubtract(each.value.write, each.value.read)) > 0 ? [1] : []

    content {
      sid       = "Write"
      actions   = ["s3:PutObject", "s3:AbortMultipartUpload"]
      resources = [for place in setsubtract(each.value.write, each.value.read) : "${aws_s3_bucket.store.arn}/${var.prefix}${local.places[place]}"]
    }
  }

  dynamic "statement" {
    for_each = length(each.value.delete) > 0 ? [1] : []

    content {
      sid       = "Delete"
      actions   = ["s3:DeleteObject"]
      resources = [for place in each.value.delete : "${aws_s3_bucket.store.arn}/${var.prefix}${local.places[place]}"]
    }
  }

  # A denial goes before every permission: a record of a memory called `marks` is no mark.
  dynamic "statement" {
    for_each = length(setintersection(each.value.read, local.ambiguous)) == 0 ? [1] : []

    content {
      sid       = "NeverRead"
      effect    = "Deny"
      actions   = ["s3:GetObject", "s3:GetObjectVersion"]
      resources = [for place in local.ambiguous : "${aws_s3_bucket.store.arn}/${var.prefix}${local.places[place]}"]
    }
  }

  dynamic "statement" {
    for_each = length(setintersection(each.value.write, local.ambiguous)) == 0 ? [1] : []

    content {
      sid       = "NeverWrite"
      effect    = "Deny"
      actions   = ["s3:PutObject"]
      resources = [for place in local.ambiguous : "${aws_s3_bucket.store.arn}/${var.prefix}${local.places[place]}"]
    }
  }

  dynamic "statement" {
    for_each = length(setintersection(each.value.delete, local.ambiguous)) == 0 ? [1] : []

    content {
      sid       = "NeverDelete"
      effect    = "Deny"
      actions   = ["s3:DeleteObject", "s3:DeleteObjectVersion"]
      resources = [for place in local.ambiguous : "${aws_s3_bucket.store.arn}/${var.prefix}${local.places[place]}"]
    }
  }

  dynamic "statement" {
    for_each = var.kms_key_arn != "" ? [1] : []

    content {
      sid       = "Key"
      actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
      resources = [var.kms_key_arn]

      condition {
        test     = "StringLike"
        variable = "kms:ViaService"
        values   = ["s3.*.amazonaws.com"]
      }
    }
  }
}

resource "aws_iam_policy" "role" {
  for_each    = local.roles
  name        = "${var.name}-${each.key}"
  description = "Runlore: what the role ${each.key} may do with the store"
  policy      = data.aws_iam_policy_document.role[each.key].json
}

# A producer outside of Runlore's own processes: it puts claims (records and archives too large for the bus) of its
# own project, under their hash, and can neither read nor list nor delete anything.
data "aws_iam_policy_document" "producer" {
  for_each = var.projects

  statement {
    sid       = "Write"
    actions   = ["s3:PutObject", "s3:AbortMultipartUpload"]
    resources = ["${aws_s3_bucket.store.arn}/${var.prefix}${each.key}/claims/??/*"]
  }

  dynamic "statement" {
    for_each = var.kms_key_arn != "" ? [1] : []

    content {
      sid       = "Key"
      actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
      resources = [var.kms_key_arn]

      condition {
        test     = "StringLike"
        variable = "kms:ViaService"
        values   = ["s3.*.amazonaws.com"]
      }
    }
  }
}

resource "aws_iam_policy" "producer" {
  for_each    = var.projects
  name        = "${var.name}-producer-${each.key}"
  description = "Runlore: what a producer of the project ${each.key} may do with the store"
  policy      = data.aws_iam_policy_document.producer[each.key].json
}
