output "bucket" {
  value       = aws_s3_bucket.store.id
  description = "RUNLORE_S3_BUCKET."
}

output "policies" {
  value       = { for name, policy in aws_iam_policy.role : name => policy.arn }
  description = "Role → the policy to attach to whatever runs it (a pod's role, a task's, a group of people)."
}

output "producer_policies" {
  value       = { for name, policy in aws_iam_policy.producer : name => policy.arn }
  description = "Project → the policy of its producers."
}
