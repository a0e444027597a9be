{{- define "runlore.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* At most 40 characters: what stands behind it has room within a label's 63. */}}
{{- define "runlore.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "runlore.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "runlore.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* These never change over the life of a release: a Deployment's selector can't. */}}
{{- define "runlore.selector" -}}
app.kubernetes.io/name: {{ include "runlore.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "runlore.labels" -}}
{{ include "runlore.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "runlore.serviceAccount" -}}
{{- $account := index .root.Values.serviceAccounts .role -}}
{{- if not $account -}}{{- fail (printf "there is no service account of the role %s: serviceAccounts.%s" .role .role) -}}{{- end -}}
{{- default (printf "%s-%s" (include "runlore.fullname" .root) (.role | replace "_" "-")) $account.name -}}
{{- end -}}

{{- define "runlore.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ default $.Chart.AppVersion .tag }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* A setting as text. Through JSON, for Helm would write 67108864 as 6.7108864e+07. */}}
{{- define "runlore.text" -}}
{{- if kindIs "string" . -}}{{ . }}{{- else -}}{{ toJson . }}{{- end -}}
{{- end -}}

{{- define "runlore.hasModel" -}}
{{- if or .Values.model.url .Values.model.existingSecret -}}true{{- end -}}
{{- end -}}

{{/* From a secret that is there: name, secret, key. */}}
{{- define "runlore.fromSecret" -}}
- name: {{ .name }}
  valueFrom:
    secretKeyRef: {name: {{ .secret }}, key: {{ .key }}}
{{- end -}}

{{- define "runlore.kafkaSecret" -}}
{{- default .root.Values.kafka.existingSecret (index .root.Values.kafka.existingSecrets .role) -}}
{{- end -}}

{{/* root, role, bus, settings (of this process, over those of all). */}}
{{- define "runlore.env" -}}
{{- $v := .root.Values -}}
{{- $given := dict "store" "s3" "s3_bucket" (required "s3.bucket is needed" $v.s3.bucket) "home" "/var/lib/runlore" "drain_seconds_max" $v.drainSeconds "log_format" "json" -}}
{{- range $name, $value := dict "s3_prefix" $v.s3.prefix "s3_region" $v.s3.region "s3_endpoint" $v.s3.endpoint "s3_kms_key" $v.s3.kmsKey -}}
{{- if $value }}{{ $_ := set $given $name $value }}{{ end -}}
{{- end -}}
{{- $_ := set $given "s3_encryption" $v.s3.encryption -}}
{{- if .model -}}
{{- with $v.model.url }}{{ $_ := set $given "model_url" . }}{{ end -}}
{{- if $v.model.file }}{{ $_ := set $given "models_file" "/etc/runlore/models/models.toml" }}{{ end -}}
{{- end -}}
{{- /* That it is not on one machine everybody knows; who does not need the bus gets neither a login nor a way to it. */}}
{{- $_ := set $given "bus" "kafka" -}}
{{- $_ := set $given "kafka_servers" (required "kafka.servers is needed: host:port, comma-separated" $v.kafka.servers) -}}
{{- if .bus -}}
{{- $_ := set $given "kafka_security" $v.kafka.security -}}
{{- $_ := set $given "kafka_topic_prefix" $v.kafka.topicPrefix -}}
{{- $_ := set $given "kafka_group_prefix" $v.kafka.groupPrefix -}}
{{- if hasPrefix "sasl" $v.kafka.security }}{{ $_ := set $given "kafka_sasl_mechanism" $v.kafka.mechanism }}{{ end -}}
{{- if $v.kafka.tlsSecret }}{{ $_ := set $given "kafka_ca_file" "/etc/runlore/kafka/ca.crt" }}{{ end -}}
{{- if and $v.kafka.tlsSecret $v.kafka.mutualTls -}}
{{- $_ := set $given "kafka_cert_file" "/etc/runlore/kafka/tls.crt" -}}
{{- $_ := set $given "kafka_key_file" "/etc/runlore/kafka/tls.key" -}}
{{- end -}}
{{- end -}}
{{- $all := mergeOverwrite (dict) (deepCopy $v.settings) (deepCopy (default (dict) .settings)) $given -}}
{{- range $name, $value := $all }}
- name: RUNLORE_{{ upper $name }}
  value: {{ include "runlore.text" $value | quote }}
{{- end }}
{{- with default $v.s3.existingSecret (index $v.s3.existingSecrets .role) }}
{{ include "runlore.fromSecret" (dict "name" "RUNLORE_S3_ACCESS_KEY_ID" "secret" . "key" "accessKeyId") }}
{{ include "runlore.fromSecret" (dict "name" "RUNLORE_S3_SECRET_ACCESS_KEY" "secret" . "key" "secretAccessKey") }}
{{- end }}
{{- if and .model $v.model.existingSecret }}
{{ include "runlore.fromSecret" (dict "name" "RUNLORE_MODEL_KEY" "secret" $v.model.existingSecret "key" "key") }}
{{- end }}
{{- range $name, $from := default (dict) (default (dict) .own).secretSettings }}
{{ include "runlore.fromSecret" (dict "name" (printf "RUNLORE_%s" (upper $name)) "secret" $from.secret "key" $from.key) }}
{{- end }}
{{- if and .bus (hasPrefix "sasl" $v.kafka.security) }}
{{- $secret := required "kafka.security wants a login: kafka.existingSecret names a secret with `username` and `password`" (include "runlore.kafkaSecret" .) }}
{{ include "runlore.fromSecret" (dict "name" "RUNLORE_KAFKA_USERNAME" "secret" $secret "key" "username") }}
{{ include "runlore.fromSecret" (dict "name" "RUNLORE_KAFKA_PASSWORD" "secret" $secret "key" "password") }}
{{- end }}
{{- end -}}

{{/*
A pod's specification. root, component, role, bus (it needs Kafka), model (it may ask one), args (or command), own (what
this process says of pods), settings, account (where it is not the role's); and of what stays: stays (it is drained and
probed), http (it answers over HTTP), preStop (seconds), volume (its home is a claim), env (more of it).
*/}}
{{- define "runlore.pod" -}}
{{- $v := .root.Values -}}
{{- $pod := mergeOverwrite (deepCopy $v.pod) (pick (default (dict) .own) "resources" "homeSizeLimit" "tmpSizeLimit" "nodeSelector" "tolerations" "affinity" "priorityClassName" "spreadOver" "extraEnv") -}}
{{- $preStop := default 0 .preStop -}}
serviceAccountName: {{ default (include "runlore.serviceAccount" .) .account }}
# Nothing here asks Kubernetes for anything; a cloud's own token is mounted by its webhook all the same.
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with $v.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- with $pod.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $pod.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $pod.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $pod.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if .stays }}
# Longer than the drain and what goes before it, or work in hand is cut off and done again.
terminationGracePeriodSeconds: {{ add $v.drainSeconds $preStop 15 }}
{{- with $pod.spreadOver }}
topologySpreadConstraints:
{{- range . }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "runlore.selector" $ | nindent 8 }}
{{- end }}
{{- end }}
{{- end }}
containers:
  - name: runlore
    image: {{ include "runlore.image" .root | quote }}
    imagePullPolicy: {{ $v.image.pullPolicy }}
    {{- if .command }}
    command: {{ toJson .command }}
    {{- else }}
    args: {{ toJson .args }}
    {{- end }}
    env:
      {{- include "runlore.env" . | trim | nindent 6 }}
      {{- if .stays }}
      - name: RUNLORE_HEALTH_ADDRESS
        value: 0.0.0.0
      - name: RUNLORE_HEALTH_PORT
        value: "9464"
      {{- end }}
      {{- if .http }}
      - name: RUNLORE_HTTP_HOST
        value: 0.0.0.0
      - name: RUNLORE_HTTP_KEYS
        value: "true"
      - name: RUNLORE_HTTP_PORT
        value: "7077"
      {{- end }}
      {{- with .env }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
      {{- with $pod.extraEnv }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    securityContext:
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: true
      capabilities: {drop: [ALL]}
    resources:
      {{- toYaml $pod.resources | nindent 6 }}
    {{- if .stays }}
    {{- $port := ternary "http" "metrics" (default false .http) }}
    ports:
      {{- if .http }}
      - {name: http, containerPort: 7077}
      {{- end }}
      - {name: metrics, containerPort: 9464}
    # Python and its libraries take seconds to load on a busy node.
    startupProbe:
      httpGet: {path: /livez, port: {{ $port }}}
      periodSeconds: 2
      failureThreshold: 60
    livenessProbe:
      httpGet: {path: /livez, port: {{ $port }}}
      periodSeconds: 10
      timeoutSeconds: 5
      failureThreshold: 3
    readinessProbe:
      httpGet: {path: /readyz, port: {{ $port }}}
      periodSeconds: 5
      timeoutSeconds: 5
      failureThreshold: 2
    {{- end }}
    {{- if $preStop }}
    lifecycle:
      preStop:
        # Whoever balances load hears that it goes before it stops to listen.
        exec: {command: [sleep, {{ $preStop | quote }}]}
    {{- end }}
    volumeMounts:
      - {name: home, mountPath: /var/lib/runlore}
      - {name: tmp, mountPath: /tmp}
      {{- if and .bus $v.kafka.tlsSecret }}
      - {name: kafka-tls, mountPath: /etc/runlore/kafka, readOnly: true}
      {{- end }}
      {{- if and .model $v.model.file }}
      - {name: models, mountPath: /etc/runlore/models, readOnly: true}
      {{- end }}
volumes:
  {{- if not .volume }}
  - name: home
    emptyDir: {sizeLimit: {{ $pod.homeSizeLimit }}}
  {{- end }}
  - name: tmp
    emptyDir: {sizeLimit: {{ $pod.tmpSizeLimit }}}
  {{- if and .bus $v.kafka.tlsSecret }}
  - name: kafka-tls
    secret: {secretName: {{ $v.kafka.tlsSecret }}, defaultMode: 0440}
  {{- end }}
  {{- if and .model $v.model.file }}
  - name: models
    configMap: {name: {{ include "runlore.fullname" .root }}-models}
  {{- end }}
{{- end -}}

{{/* A pod's labels and annotations. root, component, own, bus, model. */}}
{{- define "runlore.podMeta" -}}
{{- $pod := mergeOverwrite (deepCopy .root.Values.pod) (pick (default (dict) .own) "labels" "annotations") -}}
labels:
  {{- include "runlore.labels" . | nindent 2 }}
  # What networkpolicies.yaml goes by.
  runlore.io/bus: {{ default false .bus | quote }}
  runlore.io/model: {{ default false .model | quote }}
  {{- with $pod.labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $pod.annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* How a worker or a service is scaled: root, own. As YAML, with kind, min and max. */}}
{{- define "runlore.scaling" -}}
{{- $a := mergeOverwrite (deepCopy (omit .root.Values.autoscaling "keda")) (deepCopy .own.autoscaling) -}}
{{- toYaml $a -}}
{{- end -}}

{{/* By processor time. root, component, kind and full (of the target), scaling. */}}
{{- define "runlore.hpa" -}}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {{ .full }}
  labels:
    {{- include "runlore.labels" . | nindent 4 }}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: {{ .kind }}, name: {{ .full }}}
  minReplicas: {{ .scaling.minReplicas }}
  maxReplicas: {{ .scaling.maxReplicas }}
  metrics:
    - type: Resource
      resource:
        name: cpu
        target: {type: Utilization, averageUtilization: {{ .scaling.cpuUtilization }}}
  behavior:
    scaleDown: {stabilizationWindowSeconds: {{ .scaling.scaleDownSeconds }}}
{{- end -}}
