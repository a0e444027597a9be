variable "bucket" {
  type        = string
  description = "Name of the bucket: RUNLORE_S3_BUCKET. It holds nothing but Runlore's objects."
}

variable "prefix" {
  type        = string
  default     = ""
  description = "Prefix of every key, ending in '/', as in RUNLORE_S3_PREFIX; empty: none."

  validation {
    condition     = can(regex("^([A-Za-z0-9._-]+/)*$", var.prefix))
    error_message = "The prefix is empty, or parts that each end in '/'."
  }
}

variable "projects" {
  type        = set(string)
  default     = []
  description = "Projects whose producers get a policy of their own: each may put claims of its own project and nothing else."

  validation {
    condition     = alltrue([for name in var.projects : can(regex("^[a-z0-9][a-z0-9._-]*$", name))])
    error_message = "A project's name is lower-case and holds no '/', '*' or '?'."
  }
}

variable "kms_key_arn" {
  type        = string
  default     = ""
  description = "KMS key for SSE-KMS; empty: SSE-S3. Every role may then use this key, through S3 only."
}

variable "versioning" {
  type        = bool
  default     = false
  description = "Whether S3 keeps replaced and deleted versions. Read docs/DEPLOYMENT.md first: erasure then ends only after noncurrent_days."
}

variable "noncurrent_days" {
  type        = number
  default     = 7
  description = "Days for which S3 keeps them, with versioning."

  validation {
    condition     = var.noncurrent_days >= 1 && var.noncurrent_days <= 30
    error_message = "From 1 to 30 days: what is erased must be gone within a month."
  }
}

variable "name" {
  type        = string
  default     = "runlore"
  description = "Prefix of the policies' names."
}
