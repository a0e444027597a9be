# The bucket: private, encrypted, over TLS only, and without a way to write a head unseen.

resource "aws_s3_bucket" "store" {
  bucket = var.bucket

  # It is the truth of every recorded run.
  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_s3_bucket_public_access_block" "store" {
  bucket                  = aws_s3_bucket.store.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_ownership_controls" "store" {
  bucket = aws_s3_bucket.store.id

  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "store" {
  bucket = aws_s3_bucket.store.id

  rule {
    # One data key for many objects: small objects would else cost one KMS request each.
    bucket_key_enabled = var.kms_key_arn != ""

    apply_server_side_encryption_by_default {
      sse_algorithm     = var.kms_key_arn != "" ? "aws:kms" : "AES256"
      kms_master_key_id = var.kms_key_arn != "" ? var.kms_key_arn : null
    }
  }
}

# Off by default: with it a deleted object's bytes stay, and an erasure (invariant 10) ends only when they expire.
# Runlore needs no versions of S3's: a head names its history, and what a head let go is kept for its term.
resource "aws_s3_bucket_versioning" "store" {
  bucket = aws_s3_bucket.store.id

  versioning_configuration {
    # A bucket that had versions can only suspend them; one that never had any stays without.
    status = var.versioning ? "Enabled" : "Suspended"
  }
}

resource "aws_s3_bucket_lifecycle_configuration" "store" {
  bucket = aws_s3_bucket.store.id

  # Parts of an upload that broke off are billed and in no listing. A writer may take 3 days (the term T), no more.
  rule {
    id     = "abort-uploads"
    status = "Enabled"
    filter {}

    abort_incomplete_multipart_upload {
      days_after_initiation = 4
    }
  }

  # The topic forgets its letters after 30 days; what they point to is then in nobody's reach.
  rule {
    id     = "dead-letters"
    status = "Enabled"

    filter {
      prefix = "${var.prefix}_dead/"
    }

    expiration {
      days = 35
    }
  }

  # No rule may expire anything else: what heads name lives as long as they do. `runlore sweep` deletes the rest.
  rule {
    id     = "old-versions"
    status = "Enabled"
    filter {}

    noncurrent_version_expiration {
      noncurrent_days = var.noncurrent_days
    }
  }

  depends_on = [aws_s3_bucket_versioning.store]
}

data "aws_iam_policy_document" "bucket" {
  statement {
    sid       = "TlsOnly"
    effect    = "Deny"
    actions   = ["s3:*"]
    resources = [aws_s3_bucket.store.arn, "${aws_s3_bucket.store.arn}/*"]

    principals {
      type        = "*"
      identifiers = ["*"]
    }

    condition {
      test     = "Bool"
      variable = "aws:SecureTransport"
      values   = ["false"]
    }
  }

  # The age rule (invariant 7) counts on it that a request signed 15 minutes ago is refused. S3 does that by itself
  # for signatures in a header; one in a presigned URL may live for 7 days, unless this says otherwise.
  statement {
    sid       = "FreshSignaturesOnly"
    effect    = "Deny"
    actions   = ["s3:*"]
    resources = ["${aws_s3_bucket.store.arn}/*"]

    principals {
      type        = "*"
      identifiers = ["*"]
    }

    condition {
      test     = "NumericGreaterThan"
      variable = "s3:signatureAge"
      values   = ["900000"]
    }
  }

  statement {
    sid       = "SignatureVersion4Only"
    effect    = "Deny"
    actions   = ["s3:*"]
    resources = ["${aws_s3_bucket.store.arn}/*"]

    principals {
      type        = "*"
      identifiers = ["*"]
    }

    condition {
      test     = "StringEquals"
      variable = "s3:signatureversion"
      values   = ["AWS"]
    }
  }

  # Whoever puts a head, a record, a mark without If-Match or If-None-Match overwrites somebody: a script, an old
  # client, a console upload. The parts of a multipart upload carry no condition; its completion does.
  statement {
    sid       = "ConditionalWritesOnly"
    effect    = "Deny"
    actions   = ["s3:PutObject"]
    resources = [for place in local.conditional : "${aws_s3_bucket.store.arn}/${var.prefix}${local.places[place]}"]

    principals {
      type        = "*"
      identifiers = ["*"]
    }

    condition {
      test     = "Null"
      variable = "s3:if-match"
      values   = ["true"]
    }

    condition {
      test     = "Null"
      variable = "s3:if-none-match"
      values   = ["true"]
    }

    condition {
      test     = "Bool"
      variable = "s3:ObjectCreationOperation"
      values   = ["true"]
    }
  }
}

resource "aws_s3_bucket_policy" "store" {
  bucket = aws_s3_bucket.store.id
  policy = data.aws_iam_policy_document.bucket.json

  depends_on = [aws_s3_bucket_public_access_block.store]
}
